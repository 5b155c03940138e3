"""The run folder: config, environment, metrics, summary, status and checkpoints of one run.

::

    outputs/<experiment>/<run_id>/
      config.yaml        the resolved config, plain values without secrets
      environment.json   code, packages, machine, device; environment-1.json: earlier attempt
      uncommitted.diff   changes of the code since its commit, with save_diff=true
      metrics.jsonl      one row per line: step, tokens, then metrics; the record of truth
      summary.json       the numbers for tables, with checksums of the other files
      status.json        running, finished, interrupted or failed; start time, step, error
      checkpoints/       best.ckpt; until the run finishes last.ckpt, to resume from, and previous.ckpt, before it

``rerun=true`` starts a run over and keeps its old folder as ``<run_id>.replaced-1``, ``-2``, ...
"""

from __future__ import annotations

import itertools
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
from ssa.record.checksums import with_checksums
from ssa.record.environment import Environment
from ssa.record.inputs import Inputs, recorded_inputs
from ssa.record.run_files import (
    Row,
    State,
    Status,
    check_unchanged,
    load_config,
    load_status,
    read_environment,
    read_rows,
    read_rows_until,
    read_summary,
    to_line,
)
from ssa.redaction import redact

_LOCK_SECONDS = 1.0  # `read_status` holds the lock for an instant


class RunRecord:
    """The folder of one run, locked against other processes until it is closed.

    Nothing is written before `begin`, so that a failed start (bad data) leaves no trace.  As a context manager it marks
    a run that ends with an exception as interrupted or failed, and releases the lock.
    """

    def __init__(self, config: Config, folder: Path, lock: FileLock, made: Sequence[Path] = ()) -> None:
        self.config = config
        self.folder = folder
        self._lock = lock
        self._made = made  # parent folders that did not exist before
        self.step = 0  # the optimizer step that the status names; training sets it
        self._begun = False
        self._replaced: Path | None = None  # the old folder of a rerun

    @classmethod
    def open(cls, config: Config) -> Self:
        """Lock the folder of the run, or the folder ``config.resume``.

        Raises:
            UserError: the folder is in use, belongs to another config, is damaged, or cannot be written, or its name
                would hold a secret.
        """
        config.recorded()  # refuses a secret in the name of a folder
        folder = Path(config.resume) if config.resume else run_folder(config)
        if config.resume:
            load_config(folder)  # before the lock file is created beside the folder
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
        """The contents of status.json, or None before the first `begin`."""
        return load_status(self.folder) if (self.folder / "status.json").exists() else None

    @property
    def finished(self) -> bool:
        """Whether the run has finished and ``rerun`` is false."""
        if self.config.rerun:
            return False
        return (status := self.status) is not None and status.status == "finished"

    @property
    def last_checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint with the lowest validation loss."""
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        """The one before the newest."""
        return self.folder / "checkpoints" / "previous.ckpt"

    @property
    def resume_checkpoints(self) -> list[Path]:
        """The checkpoints to resume from, newest first; none: start from step 0.  Valid before `begin`."""
        both = [] if self.config.rerun else [self.last_checkpoint, self.previous_checkpoint]
        return [path for path in both if path.exists()]

    def begin(
        self,
        environment: Environment,
        *,
        step: int | None = None,
        checkpoint: Path | None = None,
        n_rows: int | None = None,
        data_hash: str | None = None,
        inputs: Inputs | None = None,
    ) -> None:
        """Start an attempt: set an old record aside if ``rerun``, else rewind it; the status becomes ``running``.

        Args:
            environment: of this attempt.
            step: optimizer step of the checkpoint to resume from; None: from the start.
            checkpoint: the checkpoint to resume from, which becomes the newest.
            n_rows: the number of rows up to ``step``; None: not known.
            data_hash: fingerprint of the data, which must be the same in all attempts.
            inputs: hashes of text, tokenizer and pretrained weights; those not available now stay as recorded.

        Raises:
            UserError: the data, or the precision chosen by ``auto``, differ from those of the first attempt, or a row
                up to ``step`` is damaged or lost, unless the command is ``resume=``.
        """
        if self.config.rerun and self.folder.exists():
            self._replaced = self.folder.rename(_replaced(self.folder))
        before = self.status
        if before and step is not None:
            self.check_same(data_hash=data_hash, precision=environment.facts.get("precision"))
        (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for partial in (self.folder / "checkpoints").glob(".*.partial"):
            files.remove(partial)  # of an attempt killed while saving
        self.rewind(step, n_rows)
        if checkpoint is not None and checkpoint != self.last_checkpoint:
            files.remove(self.last_checkpoint)
            checkpoint.replace(self.last_checkpoint)
        if before:
            self._keep_environment(before.attempt)
        else:  # resume and rerun are options of the command, not of the run
            config = self.config.model_copy(update={"resume": None, "rerun": False})
            write_atomic(self.folder / "config.yaml", yaml.safe_dump(config.recorded(), sort_keys=False))
        recorded = recorded_inputs(self.folder, self.config.init_from) if before and step is not None else {}
        facts = {**environment.facts, "data_hash": data_hash, "inputs": {**recorded, **(inputs or {})}}
        write_json(self.folder / "environment.json", facts)
        if environment.diff:
            write_atomic(self.folder / "uncommitted.diff", environment.diff)
        attempt, now = before.attempt + 1 if before else 1, _now()
        self.step = step or 0
        status = Status("running", attempt, now, now, self.step, os.getpid(), socket.gethostname(), None)
        write_json(self.folder / "status.json", asdict(status))
        self._begun = True

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl: ``step`` (optimizer steps), ``tokens`` (so far), then metrics.

        The row reaches the operating system before this returns, so that a kill loses no row; a full disk leaves no
        part of it.
        """
        line = to_line({"step": row["step"], "tokens": row["tokens"], **row})
        files.append(self.folder / "metrics.jsonl", line.encode())

    def rewind(self, step: int | None, n_rows: int | None = None) -> None:
        """Drop the rows after ``step`` (all rows for None), damaged or not, and an incomplete last line.

        With ``resume=`` earlier rows that are damaged or lost are named and left out.

        Raises:
            UserError: an earlier row is damaged, or there are not ``n_rows``.
        """
        kept, problems = ([], []) if step is None else read_rows_until(self.folder, step)
        if not problems and n_rows is not None and len(kept) != n_rows:
            path = self.folder / "metrics.jsonl"
            problems = [f"{path}: {len(kept)} rows up to step {step}, where {n_rows} were written{_gap(kept)}"]
        if problems and not self.config.resume:
            raise UserError(
                f"{problems[0]}; resume={self.folder} resumes with the rows that are left, rerun=true starts over"
            )
        for problem in problems:
            print(f"note: {problem}; left out", flush=True)
        write_atomic(self.folder / "metrics.jsonl", "".join(map(to_line, kept)))

    def rows(self) -> list[Row]:
        """The rows of metrics.jsonl."""
        return read_rows(self.folder) if (self.folder / "metrics.jsonl").exists() else []

    def finish(self, values: Mapping[str, Any], *, step: int) -> None:
        """Write summary.json, with checksums of all files, mark the run as finished, and only then remove the
        checkpoints to resume from, unless ``trainer.keep_last``.  A kill in between leaves them, without a checksum.
        """
        last = [] if self.config.trainer.keep_last else [self.last_checkpoint]
        removed = [*last, self.previous_checkpoint]
        status = replace(load_status(self.folder), status="finished", time=_now(), step=step, error=None)
        text = to_json(asdict(status))
        summary = with_checksums(self.folder, values, {"status.json": text}, without=removed)
        write_json(self.folder / "summary.json", summary)
        write_atomic(self.folder / "status.json", text)
        for path in removed:
            files.remove(path)

    def tidy(self) -> None:
        """Remove the checkpoints to resume from that a kill in `finish` left, which summary.json does not list."""
        listed = read_summary(self.folder).get("files", {})
        for path in (self.last_checkpoint, self.previous_checkpoint):
            name = path.relative_to(self.folder).as_posix()
            if listed and not any(other == name or other.startswith(f"{name}/") for other in listed):
                files.remove(path)

    def set_status(self, status: State, *, error: str | None = None) -> None:
        """Replace status.json; ``error`` becomes one line."""
        line = redact(" ".join(error.split())) if error else None
        after = replace(load_status(self.folder), status=status, time=_now(), step=self.step, error=line)
        write_json(self.folder / "status.json", asdict(after))

    def discard(self) -> None:
        """Undo `begin`: a first attempt that cannot reach step 1 leaves no folder, and a rerun the old one."""
        if load_status(self.folder).attempt > 1:
            return
        shutil.rmtree(self.folder)
        self._begun = False
        if self._replaced is not None:
            self._replaced.rename(self.folder)

    def close(self) -> None:
        """Release the lock."""
        if self._lock.is_locked:
            files.release(self._lock)
        for parent in self._made:
            with suppress(OSError):
                parent.rmdir()  # fails unless it is empty, as after a failed start

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        try:
            if error is not None and self._begun:
                self._record_end(error)
        finally:
            self.close()

    def _record_end(self, error: BaseException) -> None:
        """Say in the status how the run ended.

        Raises:
            UserError: the error is that the folder is gone.
        """
        if not (self.folder / "status.json").exists() and isinstance(error, OSError):
            raise UserError(f"{self.folder}: the run folder was removed or renamed while the run used it") from error
        by_signal = isinstance(error, SystemExit) and error.code == EXIT_INTERRUPTED
        with suppress(OSError, UserError):  # a full disk: without its lock the run counts as interrupted
            if load_status(self.folder).status != "running":
                return
            if by_signal or isinstance(error, KeyboardInterrupt):
                self.set_status("interrupted")
            else:
                self.set_status("failed", error=f"{type(error).__name__}: {error}")

    def check_same(self, **now: str | None) -> None:
        """Compare facts with those in environment.json; None means unknown.

        Raises:
            UserError: names the first that differs.
        """
        recorded = read_environment(self.folder)
        for name, value in now.items():
            before = recorded.get(name)
            if None not in (before, value) and before != value:
                raise UserError(
                    f"{self.folder}: {name} has changed since this run began ({before}, now {value}): "
                    "restore it, or start over with rerun=true"
                )

    def _keep_environment(self, attempt: int) -> None:
        path, diff = self.folder / "environment.json", self.folder / "uncommitted.diff"
        shutil.copy2(path, path.with_stem(f"{path.stem}-{attempt}"))  # a copy: environment.json must exist at all times
        with suppress(FileNotFoundError):
            diff.rename(diff.with_stem(f"{diff.stem}-{attempt}"))


def run_folder(config: Config) -> Path:
    """The run folder of a config: the one that exists, as its name may be of version 0.2, else the new one."""
    parent = Path(config.output_dir) / config.experiment
    folder = parent / config.run_id
    if folder.exists() or not parent.exists():
        return folder
    end = f"-{config.model.temperature.name}-{config.data.name}-s{config.seed}-{config.short_id}"
    names = (path.name for path in parent.iterdir() if (path / "config.yaml").is_file())
    older = (name for name in names if name.startswith(f"{config.model.name}-") and name.endswith(end))
    return parent / next(older, folder.name)


def read_status(folder: str | Path) -> Status:
    """The status of a run; ``interrupted`` if it says ``running`` but no process holds its lock.

    Raises:
        UserError: the folder is not a run folder, or its status.json is damaged.
    """
    status = load_status(folder)
    if status.status == "running" and not is_locked(Path(folder)):
        return replace(status, status="interrupted")
    return status


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of the run, also before it has written anything."""
    return files.is_locked(_lock_path(folder))


def _lock_path(folder: Path) -> Path:
    """Beside the folder, which may not exist yet, and may be renamed while the lock is held."""
    folder = folder.resolve()
    return folder.with_name(f".{folder.name}.lock")


def _lock(folder: Path) -> FileLock:
    try:
        return files.acquire(_lock_path(folder), _LOCK_SECONDS)
    except Timeout:
        try:
            status = load_status(folder)
            holder = f"process {status.pid} on {status.host}"
        except UserError:  # not begun yet
            holder = "another process"
        raise UserError(f"{folder} is in use by {holder}: wait for it to end, or stop it") from None
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}; choose another place with output_dir=FOLDER"
        ) from None


def _replaced(folder: Path) -> Path:
    """The first free name for the old folder of a rerun."""
    number = 1
    while (target := folder.with_name(f"{folder.name}.replaced-{number}")).exists():
        number += 1
    return target


def _gap(rows: Sequence[Row]) -> str:
    """Where rows seem to be missing: the longest distance between two of them, if there is one."""
    steps = [row["step"] for row in rows]
    distances = [after - before for before, after in itertools.pairwise(steps)]
    longest = max(distances, default=0)
    if longest <= min(filter(None, distances), default=0):
        return ""
    place = distances.index(longest)
    return f"; none between steps {steps[place]} and {steps[place + 1]}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
