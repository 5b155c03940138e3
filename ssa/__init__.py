"""Selective Self-Attention (arXiv 2411.12892): token- and position-aware temperatures for GPT-style models."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssa.adapter.adapt import adapt, disable, print_trainable_parameters, unload
    from ssa.adapter.files import load_temperatures as load
    from ssa.adapter.files import push_to_hub
    from ssa.adapter.files import save_temperatures as save
    from ssa.adapter.statistics import measured_metrics as attention_metrics

__all__ = [
    "adapt",
    "attention_metrics",
    "disable",
    "load",
    "print_trainable_parameters",
    "push_to_hub",
    "save",
    "unload",
]

# GNU OpenMP, which torch uses on Linux, reads this when it is loaded.  By default its waiting threads spin for
# milliseconds, and two processes on the same cores stop each other: see docs/performance.md.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "700")

if "RANK" in os.environ:  # one of several processes: torch prints a stack trace for each attempt to reach another
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")

_ADAPTER = {
    "adapt": "adapt.adapt",
    "attention_metrics": "statistics.measured_metrics",
    "disable": "adapt.disable",
    "load": "files.load_temperatures",
    "print_trainable_parameters": "adapt.print_trainable_parameters",
    "push_to_hub": "files.push_to_hub",
    "save": "files.save_temperatures",
    "unload": "adapt.unload",
}


def __getattr__(name: str) -> Any:
    """The functions of `ssa.adapter`, imported at their first use: transformers takes seconds."""
    if name not in _ADAPTER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec("transformers") is None:
        raise ImportError(f"ssa.{name} needs transformers: pip install 'ssa[adapter]'")
    module, function = _ADAPTER[name].split(".")
    return getattr(importlib.import_module(f"ssa.adapter.{module}"), function)
