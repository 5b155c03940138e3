"""Log-likelihoods and generation in batches, with finished requests kept on disk."""
