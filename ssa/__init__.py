"""Selective Self-Attention (arXiv 2411.12892): token- and position-aware temperatures for GPT-style models."""

import os

# GNU OpenMP, which torch uses on Linux, reads this when it is loaded.  By default its waiting threads spin for
# milliseconds, and two processes on the same cores stop each other: see docs/performance.md.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "700")

if "RANK" in os.environ:  # one of several processes: torch prints a stack trace for each attempt to reach another
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
