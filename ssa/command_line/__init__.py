"""The command line: from arguments to typed settings, with one line for every mistake."""
