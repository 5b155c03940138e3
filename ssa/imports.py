"""Imports of large libraries."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

# Lightning imports torchmetrics, which imports these wherever they are installed: half of the time that Lightning takes
_UNUSED = ("scipy", "matplotlib", "transformers")


def preload(module: str) -> None:
    """Import a module in a program, with all that it imports, in less than half of the time.

    It is done without garbage collection.  The objects it creates live as long as the process; they are frozen, so that
    later collections and the exit skip them.  torchmetrics is imported without the metrics that need other packages.
    """
    if module in sys.modules:
        return
    enabled = gc.isenabled()
    gc.disable()
    try:
        with _torchmetrics_alone():
            importlib.import_module(module)
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


@contextmanager
def _torchmetrics_alone() -> Iterator[None]:
    """In this block the checks of torchmetrics find none of its optional packages."""
    from lightning_utilities.core import imports

    installed, package_available = imports.RequirementCache.__bool__, imports.package_available

    def met(requirement: imports.RequirementCache) -> bool:
        return not str(requirement.requirement).startswith(_UNUSED) and installed(requirement)

    def available(package: str) -> bool:
        return package not in _UNUSED and package_available(package)

    with patch.object(imports.RequirementCache, "__bool__", met), patch.object(imports, "package_available", available):
        yield
