"""Log-likelihoods and generation in batches, with finished requests saved to disk."""
