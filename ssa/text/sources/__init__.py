"""Sources of text: the documents of a dataset, by split."""
