"""The processes of one run, one per device: their ranks, how they join, and what they tell each other.

A process that was started alone is a world of one, in which nothing here communicates.  In a larger one each process
(rank) runs the same code on its share of each batch; rank 0 writes the run folder and prints.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import PrefixStore, Store, TCPStore

from ssa.config import TrainerConfig
from ssa.device import resolve_device
from ssa.errors import EXIT_BAD_INPUT, EXIT_BUG, EXIT_LOST, DiskError, RankFailed, UserError, first_line
from ssa.processes import launched

T = TypeVar("T")
JOIN_SECONDS = "SSA_JOIN_SECONDS"  # environment variable: how long to wait for all processes to start
STORE_PREFIX, FAILED = "ssa", "failed"  # the key under which the first rank to fail says why
_JOIN_SECONDS = 300.0
_WAIT_SECONDS = timedelta(hours=12)  # at most, for rank 0 to prepare the text, for example
_LOST = ("gloo", "NCCL", "Connection reset", "Connection closed", "Broken pipe", "Socket", "recvValue", "TCPStore")


@dataclass(frozen=True)
class World:
    """The place of this process among those of its run.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        local_rank: of this process on its machine.
        local_size: processes on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> Self:
        """The place that torchrun, or this program's own launcher, names in the environment; else a world of one."""
        if not launched():
            return cls()
        size = int(os.environ["WORLD_SIZE"])
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        return cls(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]), local_size)

    @property
    def is_zero(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return self.size // self.local_size

    def check(self, config: TrainerConfig) -> None:
        """Refuse a config that asks for other devices than these processes were started for.

        Raises:
            UserError: names the setting.
        """
        if config.devices not in ("auto", self.local_size):
            raise UserError(
                f"trainer.devices={config.devices}: {self.local_size} processes were started on this node; "
                f"valid: {self.local_size}, or auto"
            )
        if config.nodes != self.nodes:
            raise UserError(
                f"trainer.nodes={config.nodes}: {self.size} processes, {self.local_size} on each node, were started; "
                f"valid: {self.nodes}"
            )
        config.micro_batches(self.size)
        kind = resolve_device(config.device).type
        there = {"cuda": torch.cuda.device_count(), "mps": 1}.get(kind, self.local_size)
        if there < self.local_size:
            raise UserError(
                f"trainer.devices={config.devices}: {self.local_size} processes on this node, which see {there} "
                f"{kind} devices; valid: as many processes as GPUs, all visible to each"
            )

    @contextmanager
    def joined(self, config: TrainerConfig) -> Iterator[Callable[[], AbstractContextManager[None]]]:
        """In this block the processes can communicate.  An error ends all of them, and is printed by one.

        Yields:
            The same for errors of a block within: there, the lost connection of one rank has become the error of the
            rank that failed.

        Raises:
            UserError: a process does not join in time.
            RankFailed: on an error that another rank has reported.
        """
        if self.size == 1:
            yield nullcontext
            return
        try:
            with self._failing_as_one(None):
                store = _connect(self)
            with self._failing_as_one(store):
                _await_all(self, store)
                device = resolve_device(config.device)
                backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
                if device.type == "cuda":
                    torch.cuda.set_device(self.local_rank)
                distributed.init_process_group(
                    backend, store=store, rank=self.rank, world_size=self.size, timeout=_WAIT_SECONDS
                )
                yield partial(self._failing_as_one, store)
        finally:
            with suppress(RuntimeError, AssertionError):
                distributed.destroy_process_group()

    @contextmanager
    def _failing_as_one(self, store: Store | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            failure = self._failure(error, store)
            if failure is error:
                raise
            raise failure from None

    @contextmanager
    def zero_first(self) -> Iterator[None]:
        """Rank 0 runs the block first, so that the others find what it has downloaded or computed."""
        if not self.is_zero:
            self.barrier()
        yield
        if self.is_zero:
            self.barrier()

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            self.broadcast(None)

    def broadcast(self, value: T) -> T:
        """The value of rank 0."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        distributed.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        found: T = values[0]
        return found

    def total(self, values: Tensor) -> Tensor:
        """Sum over processes."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        values = torch.tensor(value, dtype=torch.int64)
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
        return int(values)

    def _failure(self, error: Exception, store: Store | None) -> BaseException:
        """What to raise for an error: the error itself if it is the first among all ranks."""
        if not isinstance(error, UserError) and any(word in str(error) for word in _LOST):
            time.sleep(1.0)  # for the rank that failed to say why
            said = _said(store)
            if said or store is None or "peer" in str(error) or "reset" in str(error):
                return RankFailed(EXIT_LOST, said.split(" ", 2)[-1] or f"a process was lost: {first_line(error)}")
        message = f"rank {self.rank}: {error}" if self.rank else str(error)
        if isinstance(error, UserError):
            error.args = (message,)
        kind = next((kind.__name__ for kind in (DiskError, UserError) if isinstance(error, kind)), "bug")
        mine = said = f"{self.rank} {kind} {message}"
        with suppress(RuntimeError):
            said = mine if store is None else store.compare_set(FAILED, "", mine).decode()
        code = EXIT_BUG if kind == "bug" else EXIT_BAD_INPUT
        return error if said == mine else RankFailed(code, said.split(" ", 2)[-1])


WORLD_OF_ONE = World()


def _said(store: Store | None) -> str:
    """What the first rank that failed said; empty if none has, or if it cannot be read."""
    try:
        return store.get(FAILED).decode() if store is not None and store.check([FAILED]) else ""
    except RuntimeError:
        return "0 lost rank 0 is gone"


def _connect(world: World) -> Store:
    """The store of this run.

    Raises:
        UserError: its address is in use, or does not answer.
    """
    host, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ["MASTER_PORT"])
    hosts = world.is_zero and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = TCPStore(host, port, None, hosts, timedelta(seconds=_join_seconds()), False)
    except RuntimeError as error:
        what = "in use by another program" if "EADDRINUSE" in str(error) else "does not answer"
        raise UserError(
            f"MASTER_ADDR={host}, MASTER_PORT={port}: {what}; valid: a free port on rank 0's node"
        ) from None
    return PrefixStore(f"{STORE_PREFIX}{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _await_all(world: World, store: Store) -> None:
    """Wait until all processes have reached the store.

    Raises:
        UserError: names the ranks that are missing.
    """
    store.set(f"joined/{world.rank}", "1")
    end = time.monotonic() + _join_seconds()
    while absent := [rank for rank in range(world.size) if not store.check([f"joined/{rank}"])]:
        if time.monotonic() > end:
            nodes = sorted({rank // world.local_size for rank in absent})
            raise UserError(
                f"{len(absent)} of {world.size} processes did not start within {_join_seconds():.0f} s: "
                f"ranks {', '.join(map(str, absent[:8]))}{', ...' if len(absent) > 8 else ''} "
                f"(of node {', '.join(map(str, nodes))}); {JOIN_SECONDS} sets the time"
            )
        time.sleep(0.05)


def _join_seconds() -> float:
    return float(os.environ.get(JOIN_SECONDS, _JOIN_SECONDS))
