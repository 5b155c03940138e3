"""Runs as processes: one, many at once, or through a Hydra launcher."""
