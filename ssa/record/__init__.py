"""The record of a run: its folder, its environment, its mirror on W&B."""
