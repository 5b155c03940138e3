"""Hyperparameter search: Optuna over runs of ``train.py``."""

import ssa.command_line  # noqa: F401 (Ctrl-C during imports is one line)
