"""One training run as a process of its own.

A run is a list of overrides, as typed after ``python train.py``.  It is found by its run id, so that what is finished
is known as such and what was interrupted goes on.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path

from ssa.command_line.compose import configured
from ssa.config import Config
from ssa.errors import EXIT_BAD_INPUT, EXIT_BUG, UserError
from ssa.hub_client import HubUnreachable
from ssa.launch.processes import context
from ssa.record.checksums import SUMMARY
from ssa.record.run_files import read_rows
from ssa.record.run_record import is_locked, read_status, run_folder


@dataclass(frozen=True)
class Run:
    """One run of `train.py`.

    Attributes:
        overrides: as typed.
        label: what to call it in a line.
    """

    overrides: tuple[str, ...]
    label: str

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
        """Why the overrides are refused, or nothing."""
        found = _composed(self.overrides)
        return str(found) if isinstance(found, UserError) else ""

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return run_folder(self.config)

    @property
    def tokens(self) -> int:
        """That it trains on."""
        trainer = self.config.trainer
        return trainer.steps * trainer.batch_size * self.config.data.block_size

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def is_finished(self) -> bool:
        """Whether there is nothing to do."""
        return self._status == "finished"

    def is_in_use(self) -> bool:
        """Whether another process is at it, be it only to prepare it."""
        return is_locked(self.folder)

    def tokens_done(self) -> int:
        """As far as it has come."""
        with suppress(UserError, IndexError, OSError):
            return min(self.tokens, int(read_rows(self.folder)[-1]["tokens"]))
        return 0

    @property
    def last_line(self) -> str:
        """Of what it has printed: of a run that failed, why."""
        log = self.log
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
        return lines[-1] if lines else "it printed nothing"

    @property
    def _status(self) -> str:
        with suppress(UserError):  # a damaged one is not finished, and is named when it is started
            if (self.folder / "status.json").exists():
                return read_status(self.folder).status
            return "finished" if (self.folder / SUMMARY).exists() else "new"  # lost since: the table names it
        return "damaged"


_unreachable: dict[str, UserError] = {}  # by what was to be fetched: to ask the Hub in vain takes half a minute


@cache
def _composed(overrides: tuple[str, ...]) -> Config | UserError:
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


def start(run: Run, rerun: bool = False) -> BaseProcess:
    """Starts a run on one thread; it exits with 0 once it has finished, and on SIGTERM saves and stops.

    Another process that is at the same run makes it exit with 2: see `Run.is_in_use`.

    Args:
        run: what it prints is added to `Run.log`.
        rerun: start over what is finished.

    Raises:
        UserError: the overrides are refused.
    """
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    overrides = (*run.overrides, "rerun=true") if rerun else run.overrides
    values = run.config.model_copy(update={"rerun": rerun}).plain()
    process = context("ssa.training.train").Process(target=_train, args=(values, overrides, str(run.log)), daemon=False)
    process.start()
    return process


def _train(values: dict[str, object], overrides: Sequence[str], log: str) -> None:
    """One run, in a process of its own."""
    os.setsid()  # Ctrl-C is for the launcher, which asks each run once to save and stop
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    code = 0
    try:
        import torch

        from ssa.config import parse
        from ssa.training.train import train as train_one

        torch.set_num_threads(1)  # the last digits depend on their number
        train_one(parse(values), ["train.py", *overrides])
    except UserError as error:
        print("error:", error, file=sys.stderr)
        code = EXIT_BAD_INPUT
    except Exception:
        traceback.print_exc()
        code = EXIT_BUG
    sys.stdout.flush()
    sys.exit(code)
