"""The machinery behind the items: settings, cached jobs, grids of runs, tables, conclusions."""
