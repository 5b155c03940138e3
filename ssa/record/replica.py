"""The run folder as ranks other than 0 see it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from filelock import FileLock

from ssa.config import Config
from ssa.record.environment import Environment
from ssa.record.run_files import State
from ssa.record.run_record import RunRecord, run_folder


class ReplicaRecord(RunRecord):
    """The record of a run that another process writes: here nothing is locked, written or marked."""

    @classmethod
    def open(cls, config: Config) -> Self:
        folder = Path(config.resume) if config.resume else run_folder(config)
        return cls(config, folder, FileLock(folder.with_name(f".{folder.name}.lock")))

    def begin(self, environment: Environment, **_: Any) -> None:
        pass

    def log(self, row: Mapping[str, Any]) -> None:
        pass

    def finish(self, values: Mapping[str, Any], *, step: int) -> None:
        pass

    def set_status(self, status: State, *, error: str | None = None) -> None:
        pass

    def discard(self) -> None:
        pass

    def tidy(self) -> None:
        pass
