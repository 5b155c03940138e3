"""The record of one run: one folder with its config, environment, metrics, summary, status and checkpoints.

::

    outputs/<experiment>/<run_id>/
      config.yaml        the resolved config, plain values
      environment.json   what it ran on, and uncommitted.diff; earlier attempts' as environment-1.json, ...
      metrics.jsonl      a row a line: step, tokens, then metric names; the record of truth
      summary.json       the numbers that a table needs, and checksums of the other files
      status.json        running, finished, interrupted or failed; since when, at which step, why
      checkpoints/       last.ckpt, best.ckpt

A run that is started over by ``rerun=true`` leaves its old folder as ``<run_id>.replaced-1``, ``-2``, ...
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from ssa import files
from ssa.config import Config
from ssa.errors import EXIT_INTERRUPTED, UserError
from ssa.files import to_json, write_atomic, write_json
from ssa.record.checksums import sealed
from ssa.record.environment import Environment
from ssa.record.run_files import (
    Row,
    State,
    Status,
    check_unchanged,
    load_config,
    load_status,
    read_environment,
    read_rows,
    to_line,
)

_LOCK_SECONDS = 1.0  # `read_status` holds the lock for an instant, which must not look like another run


class RunRecord:
    """One run's folder, locked against a second process for as long as this object is open.

    Nothing is written before `begin`, so that a start that fails (bad data, no memory) leaves no trace.  As a context
    manager it marks a run that ends by an exception as interrupted or failed, and gives the lock back.
    """

    def __init__(self, config: Config, folder: Path, lock: FileLock, made: Sequence[Path] = ()) -> None:
        self.config = config
        self.folder = folder
        self._lock = lock
        self._made = made  # folders that were not there before
        self._begun = False

    @classmethod
    def open(cls, config: Config) -> Self:
        """Locks the folder of the config's run, or the one that ``config.resume`` names.

        Raises:
            UserError: another process has it; it holds a run of another config; it is damaged or cannot be written.
        """
        folder = Path(config.resume) if config.resume else run_folder(config)
        if config.resume:
            load_config(folder)  # before the lock, whose file goes beside the folder
        made = [parent for parent in folder.absolute().parents[:2] if not parent.exists()]
        record = cls(config, folder, _lock(folder), made)
        try:
            if not config.rerun and record.status:
                check_unchanged(folder, config)
        except BaseException:
            record.close()
            raise
        return record

    @property
    def status(self) -> Status | None:
        """What status.json says, or None before the first `begin`."""
        return load_status(self.folder) if (self.folder / "status.json").exists() else None

    @property
    def finished(self) -> bool:
        """Whether there is nothing to do: the run has finished, and ``rerun`` is not asked for."""
        if self.config.rerun:
            return False
        status = self.status
        return status is not None and status.status == "finished"

    @property
    def last_checkpoint(self) -> Path:
        """Where the newest checkpoint goes."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """Where the checkpoint with the lowest validation loss goes."""
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def resume_checkpoint(self) -> Path | None:
        """The checkpoint to go on from, or None to start from step 0.  To be asked before `begin`."""
        return self.last_checkpoint if self.last_checkpoint.exists() and not self.config.rerun else None

    def begin(
        self,
        environment: Environment,
        *,
        step: int | None = None,
        data_hash: str | None = None,
        weights_hash: str | None = None,
    ) -> None:
        """Starts an attempt: sets an old record aside if ``rerun``, else rewinds it; from here on it is ``running``.

        Args:
            environment: what this attempt runs on.
            step: the optimizer step of the checkpoint that is resumed from; None: from the start.
            data_hash: a fingerprint of the data, which must not change from one attempt to the next.
            weights_hash: likewise of the pretrained weights that the run starts from.

        Raises:
            UserError: the data, or the precision that ``auto`` means here, are not those that the run began with.
        """
        if self.config.rerun and self.folder.exists():
            self.folder.rename(_replaced(self.folder))
        before = self.status
        if before and step is not None:
            self.check_same(data_hash=data_hash, precision=environment.facts.get("precision"))
        (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for partial in (self.folder / "checkpoints").glob(".*.partial"):
            partial.unlink()  # of an attempt that was killed while it saved
        if before:
            self._keep_environment(before.attempt)
        else:
            self._write_config()
        if before and step is not None:  # nobody reads the pretrained weights again
            weights_hash = read_environment(self.folder).get("weights_hash")
        facts = {**environment.facts, "data_hash": data_hash, "weights_hash": weights_hash}
        write_json(self.folder / "environment.json", facts)
        if environment.diff:
            write_atomic(self.folder / "uncommitted.diff", environment.diff)
        self.rewind(step)
        attempt, now = before.attempt + 1 if before else 1, _now()
        self._write_status(Status("running", attempt, now, now, step or 0, os.getpid(), socket.gethostname(), None))
        self._begun = True

    def log(self, row: Mapping[str, Any]) -> None:
        """Adds a row to metrics.jsonl: ``step`` (optimizer steps), ``tokens`` (seen so far), then metrics.

        The operating system has it when this returns: killing the process loses no earlier row.
        """
        line = to_line({"step": row["step"], "tokens": row["tokens"], **row})
        with open(self.folder / "metrics.jsonl", "ab", buffering=0) as file:
            file.write(line.encode())

    def rewind(self, step: int | None) -> None:
        """Drops the rows after ``step``, all of them for None, and a torn last line."""
        kept = [row for row in self.rows() if step is not None and row["step"] <= step]
        write_atomic(self.folder / "metrics.jsonl", "".join(map(to_line, kept)))

    def rows(self) -> list[Row]:
        """The rows of metrics.jsonl."""
        return read_rows(self.folder) if (self.folder / "metrics.jsonl").exists() else []

    def finish(self, values: Mapping[str, Any], *, step: int) -> None:
        """Writes summary.json, the values with checksums of all files, and marks the run as finished."""
        status = replace(load_status(self.folder), status="finished", time=_now(), step=step, error=None)
        text = to_json(asdict(status))
        write_json(self.folder / "summary.json", sealed(self.folder, values, {"status.json": text}))
        write_atomic(self.folder / "status.json", text)

    def set_status(self, status: State, *, step: int | None = None, error: str | None = None) -> None:
        """Replaces status.json.  A ``step`` that is not given stays as it was; ``error`` becomes one line."""
        before = load_status(self.folder)
        line = " ".join(error.split()) if error else None
        step = before.step if step is None else step
        self._write_status(replace(before, status=status, time=_now(), step=step, error=line))

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock.is_locked:
            files.release(self._lock)
        for parent in self._made:
            with suppress(OSError):
                parent.rmdir()  # refused unless it is empty, as after a failed start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        try:
            if error is not None and self._begun and load_status(self.folder).status == "running":
                self._set_status_after(error)
        finally:
            self.close()

    def _set_status_after(self, error: BaseException) -> None:
        by_signal = isinstance(error, SystemExit) and error.code == EXIT_INTERRUPTED
        if by_signal or isinstance(error, KeyboardInterrupt):
            self.set_status("interrupted")
        else:
            self.set_status("failed", error=f"{type(error).__name__}: {error}")

    def check_same(self, **now: str | None) -> None:
        """See that what the run stands on is what it began with: facts of environment.json by name; None is unknown.

        Raises:
            UserError: naming the first that differs.
        """
        recorded = read_environment(self.folder)
        for name, value in now.items():
            before = recorded.get(name)
            if None not in (before, value) and before != value:
                raise UserError(
                    f"{self.folder}: {name} has changed since this run began ({before}, now {value}): "
                    "put it back, or start over with rerun=true"
                )

    def _write_config(self) -> None:
        config = self.config.model_copy(update={"resume": None, "rerun": False})  # of this command, not of the run
        write_atomic(self.folder / "config.yaml", yaml.safe_dump(config.plain(), sort_keys=False))

    def _keep_environment(self, attempt: int) -> None:
        path, diff = self.folder / "environment.json", self.folder / "uncommitted.diff"
        shutil.copy2(path, path.with_stem(f"{path.stem}-{attempt}"))  # a run must have one at any moment
        with suppress(FileNotFoundError):
            diff.rename(diff.with_stem(f"{diff.stem}-{attempt}"))

    def _write_status(self, status: Status) -> None:
        write_json(self.folder / "status.json", asdict(status))


def run_folder(config: Config) -> Path:
    """The folder of the config's run."""
    return Path(config.output_dir) / config.experiment / config.run_id


def read_status(folder: str | Path) -> Status:
    """Where the run stands.  One that says ``running`` while no process has it was killed: ``interrupted``.

    Raises:
        UserError: it is not a run folder, or its status.json is damaged.
    """
    status = load_status(folder)
    if status.status == "running" and not is_locked(Path(folder)):
        return replace(status, status="interrupted")
    return status


def is_locked(folder: Path) -> bool:
    """Whether a process is at the run, also before it has written anything."""
    return files.is_locked(_lock_path(folder))


def _lock_path(folder: Path) -> Path:
    """Beside the folder, which may not exist yet, and may be set aside while the lock is held."""
    folder = folder.resolve()
    return folder.with_name(f".{folder.name}.lock")


def _lock(folder: Path) -> FileLock:
    try:
        return files.acquire(_lock_path(folder), _LOCK_SECONDS)
    except Timeout:
        raise UserError(f"{folder} is in use by {_holder(folder)}: wait for it, or stop it") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}; output_dir=FOLDER sets another place") from None


def _holder(folder: Path) -> str:
    try:
        status = load_status(folder)
    except UserError:  # it has not begun yet
        return "another process"
    return f"process {status.pid} on {status.host}"


def _replaced(folder: Path) -> Path:
    """The first free name for a folder that is started over."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.replaced-{number}")).exists():
        number += 1
    return target


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
