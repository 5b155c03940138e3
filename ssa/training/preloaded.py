"""`ssa.training.train`, imported as a program imports it: for the process that others are forked from."""

from __future__ import annotations

from ssa.imports import preload

preload("ssa.training.train")
