"""Benchmarks of time and memory: ``python -m benchmarks [NAME ...] [to=FILE]``; figures in docs/performance.md."""
