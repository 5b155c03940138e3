"""Attention report: measurements, tables and plots."""
