"""Imports of large libraries."""

from __future__ import annotations

import gc
import importlib
import sys


def preload(module: str) -> None:
    """Import a module, with all that it imports, without garbage collection, which takes a third of the time.

    The objects it creates live as long as the process.  They are frozen, so that later collections and the exit skip
    them.
    """
    if module in sys.modules:
        return
    enabled = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module(module)
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
