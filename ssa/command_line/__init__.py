"""From the command line to a typed config."""
