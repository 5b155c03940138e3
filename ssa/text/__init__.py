"""Text in, batches out: corpora, tokenizers, the token cache, blocks."""
