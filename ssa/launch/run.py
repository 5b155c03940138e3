"""One training run in its own process.

A run is a list of overrides, as typed after ``python train.py``.  It is found by its run id, so that a finished run is
skipped and an interrupted one resumed.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path

from ssa import processes
from ssa.command_line.compose import configured
from ssa.command_line.output import log_output
from ssa.config import Config, parse
from ssa.errors import EXIT_BAD_INPUT, EXIT_BUG, EXIT_DISK, DiskError, UserError
from ssa.hub_client import HubUnreachable
from ssa.paths import CONF, typed
from ssa.record.checksums import SUMMARY
from ssa.record.run_files import load_status, read_rows
from ssa.record.run_record import is_locked, read_status, run_folder


@dataclass(frozen=True)
class Run:
    """One run of `train.py`.

    Attributes:
        overrides: as typed.
        group: a backbone or a way of training, where there is more than one.
        setting: what is compared in the group, over seeds.
        seed: None where there is no other.
    """

    overrides: tuple[str, ...]
    group: str = ""
    setting: str = ""
    seed: int | None = None

    @property
    def group_label(self) -> str:
        """Group and setting, as printed: the same for all seeds."""
        return ", ".join(filter(None, (self.group, self.setting)))

    @property
    def label(self) -> str:
        """Group, setting and seed, as printed."""
        return ", ".join(filter(None, (self.group_label, "" if self.seed is None else f"seed {self.seed}")))

    @property
    def config(self) -> Config:
        """The typed config.

        Raises:
            UserError: the overrides are refused.
        """
        found = _composed(self.overrides)
        if isinstance(found, UserError):
            raise found
        return found

    @property
    def refusal(self) -> str:
        """Why the overrides are refused; empty if they are not."""
        found = _composed(self.overrides)
        return str(found) if isinstance(found, UserError) else ""

    @property
    def folder(self) -> Path:
        return run_folder(self.config)

    @property
    def tokens(self) -> int:
        """Number of training tokens."""
        return self.config.tokens

    @property
    def log(self) -> Path:
        """The file that it prints to."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def is_finished(self) -> bool:
        with suppress(UserError):  # damaged: not finished; starting it names the damage
            if (self.folder / "status.json").exists():
                return read_status(self.folder).status == "finished"
            return (self.folder / SUMMARY).exists()  # the table names what is lost
        return False

    def is_in_use(self) -> bool:
        """Whether a process trains it, or prepares to."""
        return is_locked(self.folder)

    def tokens_done(self) -> int:
        """Number of tokens trained so far."""
        with suppress(UserError, IndexError, OSError):
            return min(self.tokens, int(read_rows(self.folder)[-1]["tokens"]))
        return 0

    @property
    def error(self) -> str:
        """The exception that ended it, in one line; empty if there was none."""
        with suppress(UserError):
            return load_status(self.folder).error or ""
        return ""

    @property
    def last_line(self) -> str:
        """The last line that it printed: the reason, if it failed."""
        log = self.log
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
        return lines[-1] if lines else "no output"

    def reason(self, code: int) -> str:
        """Why it ended with an exit code, in one line that names its log."""
        return f"{self.last_line if code > 0 else f'killed by signal {-code}'}  ({self.log})"

    def start(self, *, rerun: bool = False) -> BaseProcess:
        """Starts it in its own process, on one thread: exit code 0 once it has finished; SIGTERM saves and stops it.

        If another process has started the same run first, the exit code is 2: see `is_in_use`.

        Raises:
            UserError: the overrides are refused.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        values = self.config.model_copy(update={"rerun": rerun}).plain()
        command = typed(["train.py", *self.overrides, *(["rerun=true"] if rerun else [])])
        return processes.start(_train, (values, command), self.log, "ssa.training.preloaded")

    def stop(self) -> None:
        """Asks the process that trains it, which this one has not started, to save and stop; only on this host."""
        with suppress(UserError, OSError):
            status = load_status(self.folder)
            if self.is_in_use() and status.host == socket.gethostname():
                os.kill(status.pid, signal.SIGTERM)


_SEED = re.compile(r"seed=(0|[1-9]\d{0,8})")
_unreachable: dict[str, UserError] = {}  # by init_from: each attempt to reach the Hub takes half a minute


def _composed(overrides: tuple[str, ...]) -> Config | UserError:
    """Composed once for all seeds, as composing takes a tenth of a second."""
    others = tuple(text for text in overrides if not _SEED.fullmatch(text))
    if len(others) != len(overrides) - 1 or _reads_seed(others):
        return _composed_whole(overrides)
    (seed,) = set(overrides) - set(others)
    found = _composed_whole(others)
    return found if isinstance(found, UserError) else found.model_copy(update={"seed": int(seed.partition("=")[2])})


def _reads_seed(overrides: tuple[str, ...]) -> bool:
    return any("${seed" in text for text in overrides) or _options_read_seed()


@cache
def _options_read_seed() -> bool:
    return any("${seed" in file.read_text(encoding="utf-8") for file in CONF.rglob("*.yaml"))


@cache
def _composed_whole(overrides: tuple[str, ...]) -> Config | UserError:
    pretrained = next((override for override in overrides if override.startswith("init_from=")), "")
    if pretrained in _unreachable:
        return _unreachable[pretrained]
    try:
        return configured(*overrides)
    except HubUnreachable as error:
        _unreachable[pretrained] = error
        return error
    except UserError as error:
        return error


@log_output()
def _train(values: dict[str, object], command: Sequence[str]) -> int:
    try:
        import torch

        from ssa.launch.ranks import train

        torch.set_num_threads(1)  # the last digits depend on their number
        train(parse(values), command)
    except UserError as error:
        print("error:", error, file=sys.stderr)
        return EXIT_DISK if isinstance(error, DiskError) else EXIT_BAD_INPUT
    except Exception:
        traceback.print_exc()
        return EXIT_BUG
    return 0
