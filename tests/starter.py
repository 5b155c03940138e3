"""Starts programs of this project in new processes that have imported some modules already.

Arguments: a folder, and the modules.  Each line on stdin is a request in JSON:

- ``program``: a path, or ``-m NAME``; ``arguments``; ``folder``, to work in; ``environment``;
- ``out``: a file for the output (``.err``: for errors), ``closed``, or ``unread``, as by a reader that has gone;
- ``imported``: a file for the names of all modules that the program has imported at its end; null: none.

The answer on stdout is the id of a process that leads a session of its own.  Its exit code, negative after a signal,
appears in the folder, in a file with its id as name.  The end of stdin ends this process and removes the folder.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ssa.imports import preload

_PR_SET_CHILD_SUBREAPER = 36


def serve(folder: Path, modules: list[str]) -> None:
    """Answer requests until stdin is closed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans become children of this process
    for module in modules:
        preload(module)
    started: set[int] = set()
    starting = threading.Lock()
    threading.Thread(target=_reap, args=(folder, started, starting), daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        with starting:
            child = os.fork()
            if not child:
                _run(json.loads(line))
            started.add(child)
        print(child, flush=True)
    shutil.rmtree(folder, ignore_errors=True)


def _reap(folder: Path, started: set[int], starting: threading.Lock) -> None:
    while True:
        try:
            child, status = os.wait()
        except ChildProcessError:
            time.sleep(0.01)
            continue
        with starting:
            asked = child in started
            started.discard(child)
        if asked:
            partial = folder / f"{child}.partial"
            partial.write_text(str(os.waitstatus_to_exitcode(status)))
            partial.rename(folder / str(child))


def _run(request: dict[str, Any]) -> None:
    os.setsid()
    _redirect(request["out"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    program = request["program"]
    sys.argv = [program, *request["arguments"]]
    try:
        if program.startswith("-m "):
            runpy.run_module(program.removeprefix("-m "), run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(program, run_name="__main__")
    finally:
        if request["imported"]:
            Path(request["imported"]).write_text(" ".join(sys.modules))
    sys.exit(0)


def _redirect(out: str) -> None:
    if out == "closed":
        sys.stdin = sys.stdout = sys.stderr = sys.__stdin__ = sys.__stdout__ = sys.__stderr__ = None  # type: ignore[misc, assignment]
        os.closerange(0, 3)
        return
    if out == "unread":
        reader, writer = os.pipe()
        os.close(reader)
        files = [writer, writer]
    else:
        files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for path in (out, f"{out}.err")]
    for number, file in enumerate([os.open(os.devnull, os.O_RDONLY), *files]):
        os.dup2(file, number)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2:])
