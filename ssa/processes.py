"""Processes: a pool of long tasks, each in its own process, and function calls in worker processes."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from itertools import chain, islice
from multiprocessing import connection, forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import DefaultContext, ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from ssa.errors import EXIT_INTERRUPTED, UserError

TIME_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2) if sys.platform != "win32" else ()  # sent by Slurm
_POLL_SECONDS = 0.5
_MOST_LOST = 3  # starts of a task that failed while another program seemed to work on it; the next failure counts
_FIRST_PORT, _PORTS = 15_000, 15_000  # for the processes of a Slurm job to meet
_UNKNOWN = 255  # exit code of a process whose fork server was killed
_preloads: list[str] = []  # see `preload`


class WorkerKilled(UserError):
    """A worker process was killed in the middle of a call."""


class Task(Protocol):
    """A task that one process at a time works on, in this program or another, and that resumes where it stopped."""

    def start(self, *, rerun: bool) -> BaseProcess:
        """Starts it in a new process, which exits with 0 once it has finished, and on SIGTERM saves and stops."""

    def stop(self) -> None:
        """Asks the process of another program that works on it to stop."""

    def is_in_use(self) -> bool:
        """Whether a process works on it."""

    def is_finished(self) -> bool:
        """Whether nothing is left to do."""


AnyTask = TypeVar("AnyTask", bound=Task)


class Pool(Generic[AnyTask]):
    """Tasks at work, at most ``jobs`` at once.  Leaving the context stops those that it started.

    A task that another program works on is awaited, and started here if that program leaves it unfinished.  With
    ``rerun`` finished tasks start over.

    Attributes:
        active: the process of each task; None: another program's, or none where it has finished.
    """

    def __init__(self, jobs: int, *, rerun: bool = False) -> None:
        self.jobs, self.rerun = jobs, rerun
        self.active: dict[AnyTask, BaseProcess | None] = {}
        self._stopped: set[AnyTask] = set()
        self._lost: Counter[AnyTask] = Counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        started = [process for process in self.active.values() if process is not None]
        for process in started:
            process.terminate()
        for process in started:
            process.join()

    def run(self, tasks: Iterable[AnyTask], on_poll: Callable[[], None]) -> Iterator[tuple[AnyTask, int]]:
        """Runs tasks, and yields each as it ends, with its exit code, negative after a signal.

        Args:
            tasks: the next one is drawn when a process is free.
            on_poll: called twice a second, or more often.
        """
        waiting = iter(tasks)
        while True:
            while len(self.active) < self.jobs and (task := next(waiting, None)) is not None:
                done = task.is_finished() and not self.rerun
                self.active[task] = None if done or task.is_in_use() else task.start(rerun=self.rerun)
            if not self.active:
                return
            for task in list(self.active):
                code = self._exit_code(task)
                if code is not None:
                    del self.active[task]
                    yield task, code
            on_poll()
            connection.wait([process.sentinel for process in self.active.values() if process], _POLL_SECONDS)

    def stop(self, task: AnyTask) -> None:
        """Asks an active task, once, to save and stop."""
        if task not in self._stopped:
            self._stopped.add(task)
            process = self.active[task]
            if process is None:
                task.stop()
            else:
                process.terminate()

    def _exit_code(self, task: AnyTask) -> int | None:
        process = self.active[task]
        if process is None:
            if task.is_in_use():
                return None
            if task.is_finished():
                return 0
            if task in self._stopped:
                return EXIT_INTERRUPTED
            self.active[task] = task.start(rerun=self.rerun)
            return None
        if process.is_alive():
            return None
        process.join()
        lost = task.is_in_use() or (task.is_finished() and not self.rerun)
        if process.exitcode and lost and task not in self._stopped and self._lost[task] < _MOST_LOST:
            self._lost[task] += 1
            self.active[task] = None  # another program started it first
            return None
        return -signal.SIGKILL if process.exitcode == _UNKNOWN else process.exitcode


def start(target: Callable[..., int], arguments: tuple[Any, ...], log: Path | None, preload: str) -> BaseProcess:
    """Starts a process that survives this one, and that Ctrl-C does not reach.

    The exit code is what ``target``, a function of a module, returns; the output is appended to the log, or goes where
    this process prints to.  ``preload``: see `_context`.  Ctrl-C while it starts stops it, too.
    """
    context = _context(preload)
    process = context.Process(target=_run, args=(target, arguments, log), daemon=False)
    with _fork_server():
        _wait_for_imports(context)
        with _deferred_signals() as received:
            process.start()
    if received:
        process.terminate()
        signal.raise_signal(received[0])
    return process


@cache
def _wait_for_imports(context: DefaultContext | ForkServerContext | SpawnContext) -> None:
    """Wait until processes start at once; here Ctrl-C leaves nothing behind."""
    process = context.Process(target=_nothing, daemon=True)
    process.start()
    process.join()


def _nothing() -> None:
    pass


@contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """In this block, signals that would end this program are only listed."""
    received: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [signal.SIGINT, *termination_signals()] if is_main else []
    before = {number: signal.signal(number, lambda got, _: received.append(got)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(target: Callable[..., int], arguments: tuple[Any, ...], log: Path | None) -> None:
    os.setsid()
    gc.freeze()  # what the fork server imported, which takes a second to search at the exit
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by the process that it was forked from
    if log is not None:
        redirect_output(log)
    code = target(*arguments)
    sys.stdout.flush()
    sys.exit(code)


def redirect_output(log: Path) -> int:
    """Appends to a file what this process prints from now on; returns the file's size so far, in bytes."""
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        return file.tell()


def call_each(
    function: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    *,
    jobs: int,
    preload: str,
    setting: str = "jobs",
    isolated: bool = False,
) -> Iterator[tuple[int, Any]]:
    """Calls a function of a module in worker processes, which die with this one.

    Args:
        function: with one job, or for one call, it is called in this process.
        calls: the arguments of each call, drawn as workers become free.
        jobs: workers.
        preload: see `_context`.
        setting: the name of the setting that ``jobs`` comes from, for the error message.
        isolated: always use workers.

    Yields:
        The number of each call and what it returned, as calls finish.

    Raises:
        WorkerKilled: a worker was killed, such as for lack of memory.
    """
    numbered = enumerate(calls)
    first = list(islice(numbered, 2))
    if not isolated and (jobs == 1 or len(first) < 2):
        yield from ((number, function(*call)) for number, call in chain(first, numbered))
        return
    reader, writer = connection.Pipe(duplex=False)
    with reader, writer, ProcessPoolExecutor(jobs, _context(preload), _start_worker, (reader,)) as workers:
        pending: dict[Future[Any], int] = {}
        try:
            for number, call in chain(first, numbered):
                with _fork_server():
                    future = workers.submit(function, *call)
                pending[future] = number
                if len(pending) > jobs:
                    yield from _done(pending)
            while pending:
                yield from _done(pending)
        except BaseException as error:
            writer.close()  # ends the workers at once
            workers.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise WorkerKilled(
                    f"{setting}={jobs}: a process was killed, most often for lack of memory; {setting}=1 needs less; "
                    "rerun the command to resume"
                ) from None
            raise


def _done(pending: dict[Future[Any], int]) -> Iterator[tuple[int, Any]]:
    """Results of one or more calls, in order of their numbers, as soon as there are any."""
    for future in sorted(wait(pending, return_when=FIRST_COMPLETED).done, key=pending.__getitem__):
        number = pending.pop(future)
        yield number, future.result()


def _start_worker(parent: Connection) -> None:
    """One core, no signals of a terminal, and no life without the parent, whose death closes the pipe's other end."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    die_with(parent)


def die_with(parent: Connection) -> None:
    """End this process when the other end of a pipe is closed, as its holder's death does."""
    threading.Thread(target=_await_end, args=(parent,), daemon=True).start()


def _await_end(parent: Connection) -> None:
    try:
        parent.recv()
    finally:
        os._exit(1)


def launched() -> bool:
    """Whether torchrun, Slurm, or this program has started this process as one of several of a run."""
    _adopt_slurm()
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def _adopt_slurm() -> None:
    """In a task of a Slurm job step with several: name the ranks as torchrun does."""
    names = ("JOB_ID", "STEP_ID", "STEP_NUM_TASKS", "STEP_NUM_NODES", "STEP_NODELIST", "PROCID", "LOCALID", "NODEID")
    slurm = {name: os.environ.get(f"SLURM_{name}", "") for name in names}
    if "RANK" in os.environ or not all(slurm.values()) or slurm["STEP_NUM_TASKS"] == "1":
        return
    from lightning.fabric.plugins.environments import SLURMEnvironment  # imports torch

    size = int(slurm["STEP_NUM_TASKS"])
    place = {
        "RANK": slurm["PROCID"],
        "LOCAL_RANK": slurm["LOCALID"],
        "GROUP_RANK": slurm["NODEID"],
        "WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": size // int(slurm["STEP_NUM_NODES"]),
        "MASTER_ADDR": SLURMEnvironment.resolve_root_node_address(slurm["STEP_NODELIST"]),
        "MASTER_PORT": _FIRST_PORT + (int(slurm["JOB_ID"]) + 997 * int(slurm["STEP_ID"])) % _PORTS,
    }
    os.environ.update({name: str(value) for name, value in place.items()})


def preload(module: str) -> None:
    """Name a module that this program's processes will need, before the first of them starts.

    The process that they come from imports it once, whatever module the first call names.  A module that is named too
    late is imported by every process.
    """
    _preloads.append(module)


@contextmanager
def _fork_server() -> Iterator[None]:
    """Name the death of the fork server, of which a start says only that a connection was closed."""
    try:
        yield
    except (EOFError, ConnectionError):
        raise WorkerKilled(
            "the process that starts others was killed, most often for lack of memory; rerun the command to resume"
        ) from None


def _context(preload: str) -> DefaultContext | ForkServerContext | SpawnContext:
    """Where processes come from: on Linux, from one that has already imported a module, which saves seconds each time.

    That one ignores the signals of a terminal, also while it imports: it reports how its processes end.

    Args:
        preload: the module, whose import must not touch a device.  The first call of this process decides, after what
            `preload` named.
    """
    if sys.platform != "linux":
        return get_context("spawn")
    server = get_context("forkserver")
    server.set_forkserver_preload([*_preloads, preload])
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        forkserver.ensure_running()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return server


@contextmanager
def interruptible() -> Iterator[None]:
    """In this block SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in termination_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        # Nothing is left to stop: in the exit functions of libraries, Ctrl-C would print a traceback.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def requeue(number: int, handler: Any) -> None:
    """After a warning of Slurm's that the time limit is near, put the job back in its queue, to be resumed.

    Args:
        number: the signal.
        handler: what it would have called: a launcher's own handler puts the job back itself.
    """
    if number not in TIME_WARNINGS:
        return
    if callable(handler):
        handler(number, None)
    elif "SLURM_JOB_ID" in os.environ and os.environ.get("RANK", "0") == os.environ.get("SLURM_PROCID", "0") == "0":
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)


def termination_signals() -> list[signal.Signals]:
    """SIGTERM, and SIGHUP, of a terminal that closes, unless it is ignored, as by nohup."""
    return [signal.SIGTERM, *([] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP])]
