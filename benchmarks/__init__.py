"""Benchmarks of time and memory: ``python -m benchmarks [NAME ...] [to=FILE]``; figures in docs/performance.md."""

import ssa.command_line  # noqa: F401 (Ctrl-C during imports is one line)
