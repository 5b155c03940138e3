"""Experiment engine: settings, cached jobs, grids of runs, tables, conclusions."""
