"""From models and runs to tables."""
