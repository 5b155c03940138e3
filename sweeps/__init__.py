"""Hyperparameter search: Optuna over runs of ``train.py``."""
