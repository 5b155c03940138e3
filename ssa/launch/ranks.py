"""One run on several devices of this machine: a process for each, started, watched and stopped together."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from ssa import paths, processes
from ssa.command_line.output import log_output
from ssa.config import Config, parse
from ssa.errors import EXIT_BAD_INPUT, EXIT_BUG, EXIT_INTERRUPTED, EXIT_LOST, DiskError, UserError
from ssa.record.run_files import read_summary
from ssa.record.run_record import run_folder

_HOST = "127.0.0.1"
_GRACE_SECONDS = 5.0  # for the other ranks to say why they failed, after the first one has
_POLL_SECONDS = 1.0


def train(config: Config, command: Sequence[str] = ()) -> dict[str, Any]:
    """Run or resume the run of a config on its devices; see `ssa.training.train.train`.

    In a process that torchrun or Slurm has started as one of several, this is its share of the run.

    Raises:
        UserError: as in `ssa.training.train.train`, or a process was killed.
        SystemExit: 130 after SIGINT, SIGTERM or SIGHUP; the run can be resumed.
    """
    from ssa.device import resolve_devices
    from ssa.training.train import train as train_here

    size = 1 if processes.launched() else resolve_devices(config.trainer)
    if size == 1:
        return train_here(config, command)
    with tempfile.TemporaryDirectory(prefix="ssa-ranks-") as logs:
        _Ranks(config, command, size, Path(logs)).run()
    return read_summary(_folder(config))


class _Ranks:
    """The processes of a run."""

    def __init__(self, config: Config, command: Sequence[str], size: int, logs: Path) -> None:
        from torch.distributed import TCPStore

        self.config, self.command, self.size, self.logs = config, command, size, logs
        self.store = TCPStore(_HOST, 0, None, True, wait_for_workers=False)
        self.ranks: list[BaseProcess] = []
        self.signals: list[int] = []  # received

    def run(self) -> None:
        """Start all, and wait until they have ended."""
        reader, writer = Pipe(duplex=False)
        with reader, writer:
            try:
                for rank in range(self.size):
                    self.ranks.append(self._start(rank, reader))
                with self._forwarded_signals():
                    self._wait()
            finally:
                self._kill()
        self._report({rank: process.exitcode or 0 for rank, process in enumerate(self.ranks)})

    def _start(self, rank: int, reader: Connection) -> BaseProcess:
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "GROUP_RANK": 0,
            "WORLD_SIZE": self.size,
            "LOCAL_WORLD_SIZE": self.size,
            "MASTER_ADDR": _HOST,
            "MASTER_PORT": self.store.port,
            "TORCHELASTIC_USE_AGENT_STORE": True,
        }
        environment = {name: str(value) for name, value in place.items()}
        arguments = (self.config.plain(), self.command, environment, reader)
        return processes.start(_train, arguments, self._log(rank) if rank else None, "ssa.training.preloaded")

    def _wait(self) -> None:
        """Until all have ended, or some time after the first failure."""
        end = float("inf")
        while alive := [process for process in self.ranks if process.is_alive()]:
            wait([process.sentinel for process in alive], _POLL_SECONDS)
            failed = [code for code in (process.exitcode for process in self.ranks) if code not in self._fine]
            if failed:
                end = min(end, time.monotonic() + _GRACE_SECONDS)
            if time.monotonic() > end or len(self.signals) > 1 or any(code < 0 for code in failed if code):
                return

    @property
    def _fine(self) -> set[int | None]:
        """Exit codes that no failure has; None: it has not ended."""
        return {None, 0, EXIT_INTERRUPTED, *([-signal.SIGTERM] if self.signals else [])}

    def _kill(self) -> None:
        for process in self.ranks:
            process.kill()
        for process in self.ranks:
            process.join()

    @contextmanager
    def _forwarded_signals(self) -> Iterator[None]:
        """The first signal asks all ranks to save and stop, the second ends them."""

        def forward(number: int, _: FrameType | None) -> None:
            self.signals.append(number)
            for process in self.ranks:
                process.terminate()

        numbers = (signal.SIGINT, *processes.termination_signals(), *processes.TIME_WARNINGS)
        self.before = {number: signal.signal(number, forward) for number in numbers}
        try:
            yield
        finally:
            for number, handler in self.before.items():
                signal.signal(number, handler)

    def _report(self, codes: dict[int, int]) -> None:
        """Raise what the ranks failed with."""
        failed = {rank: code for rank, code in codes.items() if code not in self._fine}
        if not failed:
            if any(codes.values()):
                if self.signals:
                    processes.requeue(self.signals[0], self.before[self.signals[0]])
                raise SystemExit(EXIT_INTERRUPTED)
            return
        if (error := self._user_error()) is not None:
            raise error
        rank, code = min(failed.items(), key=lambda item: (item[1] == EXIT_LOST, item[1]))
        if code < 0:
            name = signal.Signals(-code).name
            why = ", most often for lack of memory" if code == -signal.SIGKILL else ""
            again = f"{paths.command('train.py')} resume={_folder(self.config)}"
            raise UserError(f"rank {rank} of {self.size} was killed by {name}{why}; to resume: {again}")
        log = self._log(rank)
        if rank and log.exists():
            print(log.read_text(encoding="utf-8", errors="replace"), file=sys.stderr, end="")
        raise RuntimeError(f"rank {rank} of {self.size} failed with exit code {code}")

    def _user_error(self) -> UserError | None:
        """The error of the first rank that failed, if it is one for the user."""
        from torch.distributed import PrefixStore

        from ssa.training.world import FAILED, STORE_PREFIX

        store = PrefixStore(f"{STORE_PREFIX}0", self.store)
        if not store.check([FAILED]):
            return None
        _, kind, message = store.get(FAILED).decode().split(" ", 2)
        kinds = {UserError.__name__: UserError, DiskError.__name__: DiskError}
        return kinds[kind](message) if kind in kinds else None

    def _log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"


def _folder(config: Config) -> Path:
    return Path(config.resume) if config.resume else run_folder(config)


@log_output()
def _train(values: dict[str, object], command: Sequence[str], place: dict[str, str], parent: Connection) -> int:
    """One rank; errors for the user go through the store of `_Ranks`."""
    os.environ.update(place)
    processes.die_with(parent)
    import torch

    from ssa.training.train import train as train_here

    torch.set_num_threads(max(1, torch.get_num_threads() // int(place["LOCAL_WORLD_SIZE"])))
    try:
        train_here(parse(values), command)
    except UserError:
        return EXIT_BAD_INPUT
    except Exception:
        traceback.print_exc()
        return EXIT_BUG
    return 0
