"""Environment of a run: commit and changed files, packages, machine, device, command.

No environment variables but those of OpenMP are read, and secrets are redacted.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from ssa.files import hash_of_bytes
from ssa.redaction import redact, redact_command, redacted

_MAX_DIFF = 2**20  # characters; a longer diff is data rather than code
_MAX_NAMES = 100  # of files
_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")  # how long OpenMP's threads spin


class Environment(NamedTuple):
    """Facts of a process and of its code."""

    facts: dict[str, Any]  # the contents of environment.json
    diff: str | None  # the uncommitted changes, if asked for


def describe(
    command: Sequence[str] = (), *, source: Path | None = None, diff: bool = False, **known: Any
) -> Environment:
    """The environment of this process, now.

    Args:
        command: the command line of the run, program first.
        source: a file whose git checkout is described; default: of this package.
        diff: also return the uncommitted changes, and not their hash alone.
        known: further facts as plain values: device, precision, ...
    """
    git, changes = _git(source or Path(__file__))
    facts = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": redact_command(command),
        "host": socket.gethostname(),
        "git": git,
        "python": platform.python_version(),
        "machine": {
            "os": platform.platform(),
            "cpu": cpu_model(),
            "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
            "threads": psutil.cpu_count(),
            "usable_threads": len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else None,
            "memory_bytes": psutil.virtual_memory().total,
            "waiting_threads": {name: os.environ[name] for name in _WAITING if name in os.environ},
        },
        **known,
        "packages": _packages(),
    }
    return Environment(redacted(facts), redact(_shorten(changes)) if diff and changes else None)


def _git(source: Path) -> tuple[dict[str, Any] | None, str]:
    """State and uncommitted changes of the checkout that tracks the file; None if there is none."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(source.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30, check=True)
        return done.stdout

    try:
        ask("ls-files", "--error-unmatch", source.name)  # not for a package installed inside a checkout
        root = ask("rev-parse", "--show-toplevel").rstrip("\n")
        commit = ask("rev-parse", "HEAD").strip()
        diff = ask("-C", root, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD")
        changed = ask("-C", root, "diff", "--name-only", "HEAD").splitlines()
        untracked = ask("-C", root, "ls-files", "--others", "--exclude-standard").splitlines()
    except (OSError, subprocess.SubprocessError):
        return None, ""
    facts = {
        "commit": commit,
        "dirty": bool(diff or untracked),
        "changed": changed[:_MAX_NAMES],
        "untracked": untracked[:_MAX_NAMES],
        "diff_sha256": hash_of_bytes(diff.encode()) if diff else None,
    }
    return facts, diff


def _shorten(diff: str) -> str:
    if len(diff) <= _MAX_DIFF:
        return diff
    kept = diff[: diff.rfind("\n", 0, _MAX_DIFF) + 1]  # whole lines: half a key would not be recognized
    return f"{kept}[{len(diff) - len(kept)} more characters omitted]\n"


def cpu_model() -> str:
    """The name of the CPU, which `platform` does not know on Linux."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


@cache
def _packages() -> dict[str, str]:
    found = (item.metadata for item in metadata.distributions())  # parsed anew at each access
    names = ((item["Name"], item["Version"]) for item in found)
    return dict(sorted(((name, version) for name, version in names if name), key=lambda pair: pair[0].lower()))
