"""Processes for parts and runs."""

from __future__ import annotations

import os
import sys
import threading
import time
from multiprocessing import get_context
from multiprocessing.context import DefaultContext, ForkServerContext, SpawnContext

import psutil


def context(*preload: str) -> DefaultContext | ForkServerContext | SpawnContext:
    """Where processes come from: on Linux, from one that has imported modules already, which saves seconds each time.

    Args:
        preload: modules, which must not touch a device as they are imported.  The first call decides.
    """
    if sys.platform != "linux":
        return get_context("spawn")
    server = get_context("forkserver")
    server.set_forkserver_preload(list(preload))
    return server


def live_with(pid: int) -> None:
    """Ends this process when that one is gone: a killed study leaves none behind."""

    def watch() -> None:
        while psutil.pid_exists(pid):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
