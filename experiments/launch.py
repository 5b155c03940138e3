"""Training runs, each a process of its own, several at once; finished ones are not run again.

A run is a list of overrides, as typed after ``python train.py``.  It is found by its run id: what is finished is
skipped, what was interrupted goes on, and one that another process is at is waited for.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.process import BaseProcess
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from experiments.processes import context
from ssa.command_line.compose import configured
from ssa.config import Config
from ssa.errors import EXIT_BAD_INPUT, EXIT_BUG, UserError
from ssa.record.run_files import read_rows
from ssa.record.run_record import is_locked, read_status, run_folder

_POLL_SECONDS = 0.5
_LINES_SECONDS = 30.0


@dataclass(frozen=True)
class Run:
    """One run of `train.py`.

    Attributes:
        overrides: as typed.
        label: what to call it in a line.
    """

    overrides: tuple[str, ...]
    label: str

    @cached_property
    def config(self) -> Config:
        """The typed config.

        Raises:
            UserError: the overrides are refused.
        """
        return configured(*self.overrides)

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
    def _status(self) -> str:
        return read_status(self.folder).status if (self.folder / "status.json").exists() else "new"


def train(runs: Sequence[Run], *, jobs: int, console: Console, rerun: bool = False) -> list[Path]:
    """Brings every run to its end, ``jobs`` at once, of one thread each; returns their folders, in order.

    A run that fails is named at once, with its log; the others go on.

    Raises:
        UserError: overrides are refused, before anything is run; or some runs failed, at the end.
    """
    unique = list({run.folder: run for run in runs}.values())
    waiting = [run for run in unique if rerun or not run.is_finished()]
    if len(unique) > len(waiting):
        console.print(f"{len(unique) - len(waiting)} of {len(unique)} runs have finished before")
    if waiting:
        failed = _Pool(waiting, jobs, console, rerun).finish()
        if failed:
            names = ", ".join(f"{run.label} ({run.log})" for run in failed)
            raise UserError(f"{len(failed)} of {len(unique)} runs failed: {names}; the same command runs them again")
    return [run.folder for run in runs]


class _Pool:
    def __init__(self, waiting: list[Run], jobs: int, console: Console, rerun: bool) -> None:
        self.waiting, self.jobs, self.console, self.rerun = list(waiting), jobs, console, rerun
        self.total, self.runs = sum(run.tokens for run in waiting), len(waiting)
        self.before = {run.folder: 0 if rerun else run.tokens_done() for run in waiting}  # trained by earlier attempts
        self.running: dict[Run, BaseProcess | None] = {}  # None: another launcher's
        self.done: list[Run] = []
        self.failed: list[Run] = []
        self.context = context("ssa.training.train")

    def finish(self) -> list[Run]:
        """Runs all, and returns those that failed."""
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[text]}"))
        try:
            with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
                bar = progress.add_task("training", total=self.total, text="")
                began = said = time.perf_counter()
                while self.waiting or self.running:
                    self._start()
                    self._collect()
                    now = time.perf_counter()
                    tokens = self._tokens()
                    text = self._text(tokens, now - began)
                    progress.update(bar, completed=tokens, text=text)
                    if not self.console.is_terminal and now - said > _LINES_SECONDS:
                        self.console.print(text)
                        said = now
                    time.sleep(_POLL_SECONDS)
        except BaseException:
            self._stop()
            raise
        return self.failed

    def _start(self) -> None:
        while self.waiting and len(self.running) < self.jobs:
            run = self.waiting.pop(0)
            if run.is_in_use():
                self.running[run] = None
                continue
            run.folder.parent.mkdir(parents=True, exist_ok=True)
            overrides = (*run.overrides, "rerun=true") if self.rerun else run.overrides
            config = run.config.model_copy(update={"rerun": self.rerun})
            process = self.context.Process(target=_train, args=(config.plain(), overrides, str(run.log)), daemon=False)
            process.start()
            self.running[run] = process

    def _collect(self) -> None:
        for run, process in list(self.running.items()):
            if process is None:
                if run.is_in_use():
                    continue
                del self.running[run]
                (self.done if run.is_finished() else self.waiting).append(run)
            elif not process.is_alive():
                del self.running[run]
                process.join()
                if process.exitcode == 0:
                    self.done.append(run)
                elif run.is_in_use():  # another launcher was faster
                    self.waiting.append(run)
                else:
                    self.failed.append(run)
                    self.console.print(f"failed: {run.label}: {_last_line(run.log)}  ({run.log})")

    def _tokens(self) -> int:
        finished = sum(run.tokens for run in (*self.done, *self.failed))
        going_on = [run for run in (*self.running, *self.waiting) if not self.rerun or run.is_in_use()]
        return finished + sum(run.tokens_done() for run in going_on)

    def _text(self, tokens: int, seconds: float) -> str:
        speed = (tokens - sum(self.before.values())) / seconds
        left = f"{(self.total - tokens) / speed / 60:.0f} min" if speed > 0 else "?"
        state = f"{len(self.done)} of {self.runs} runs done, {len(self.running)} running"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return f"{state}{failed}  {speed:,.0f} tokens/s  ETA {left}"

    def _stop(self) -> None:
        """Lets each run save where it is; the same command goes on from there."""
        for process in filter(None, self.running.values()):
            process.terminate()
        for process in filter(None, self.running.values()):
            process.join()


def _train(values: dict[str, object], overrides: Sequence[str], log: str) -> None:
    """One run, in a process of its own."""
    os.setsid()  # Ctrl-C is for the launcher, which asks each run once to save and stop
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["train.py", *overrides]  # what the record says that it was run by
    code = 0
    try:
        import torch

        from ssa.config import parse
        from ssa.training.train import train as train_one

        torch.set_num_threads(1)  # the last digits depend on their number
        train_one(parse(values))
    except UserError as error:
        print("error:", error, file=sys.stderr)
        code = EXIT_BAD_INPUT
    except Exception:
        traceback.print_exc()
        code = EXIT_BUG
    sys.stdout.flush()
    sys.exit(code)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "it printed nothing"
