"""Evaluation of trained and pretrained models: tasks, attention report, scoring."""
