"""One page of all runs and results, in one file that needs no network."""
