"""The plan of a run: parameters, memory, FLOPs, time and disk, computed before anything runs."""
