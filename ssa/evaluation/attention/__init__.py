"""The attention report: its measurements, tables and plots."""
