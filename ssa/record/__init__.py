"""The run folder, its mirror on W&B, and the table of all runs."""
