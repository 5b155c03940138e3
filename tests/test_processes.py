"""The pool of tasks and the workers for function calls, with tasks that take milliseconds."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from ssa.errors import EXIT_INTERRUPTED
from ssa.processes import Pool, WorkerKilled, call_each, interruptible, start

PRELOAD = "ssa.errors"


@dataclass(frozen=True)
class Wait:
    """A task that prints, waits and exits; files say whether it has finished, and whether another program has it."""

    folder: Path
    name: str
    code: int = 0
    seconds: float = 0.0

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def start(self, *, rerun: bool) -> BaseProcess:
        return start(wait, (self.folder, self.name, self.code, self.seconds, rerun), self.log, PRELOAD)

    def stop(self) -> None:
        (self.folder / f"{self.name}.used").unlink()

    def is_in_use(self) -> bool:
        return (self.folder / f"{self.name}.used").exists()

    def is_finished(self) -> bool:
        return (self.folder / f"{self.name}.done").exists()


def wait(folder: Path, name: str, code: int, seconds: float, rerun: bool) -> int:
    print(f"{name} starts, rerun={rerun}", flush=True)
    time.sleep(seconds)
    if code in (0, 2):  # 2: as if another program had finished it
        (folder / f"{name}.done").touch()
    return code


def run(pool: Pool[Wait], *tasks: Wait) -> list[tuple[str, int]]:
    with pool:
        return sorted((task.name, code) for task, code in pool.run(tasks, lambda: None))


def test_tasks_end_with_their_exit_codes_and_logs(tmp_path: Path) -> None:
    tasks = [Wait(tmp_path, "good"), Wait(tmp_path, "bad", code=3), Wait(tmp_path, "killed", seconds=60)]
    pool: Pool[Wait] = Pool(2)
    seen = []

    def on_poll() -> None:
        seen.append(len(pool.active))
        process = pool.active.get(tasks[2])
        if process is not None and tasks[2].log.exists() and tasks[2].log.read_text():
            process.kill()

    with pool:
        assert {task.name: code for task, code in pool.run(iter(tasks), on_poll)} == {"good": 0, "bad": 3, "killed": -9}
    assert max(seen) == 2
    assert tasks[1].log.read_text() == "bad starts, rerun=False\n"


def test_a_task_of_another_program_is_awaited_and_started_if_left_unfinished(tmp_path: Path) -> None:
    (tmp_path / "other.used").touch()
    (tmp_path / "left.used").touch()
    other, left = Wait(tmp_path, "other"), Wait(tmp_path, "left")
    pool: Pool[Wait] = Pool(2)

    def on_poll() -> None:
        if pool.active.get(other, "ended") is None:
            (tmp_path / "other.done").touch()
            (tmp_path / "other.used").unlink(missing_ok=True)
            (tmp_path / "left.used").unlink(missing_ok=True)

    with pool:
        assert {task.name: code for task, code in pool.run([other, left], on_poll)} == {"other": 0, "left": 0}
    assert not other.log.exists()
    assert left.log.exists()


def test_a_task_that_another_program_was_faster_to_start_is_not_a_failure(tmp_path: Path) -> None:
    assert run(Pool(1), Wait(tmp_path, "faster", code=2)) == [("faster", 0)]
    assert run(Pool(1, rerun=True), Wait(tmp_path, "faster", code=2)) == [("faster", 2)]
    assert "rerun=True" in Wait(tmp_path, "faster").log.read_text()


def test_stopping_one_task(tmp_path: Path) -> None:
    (tmp_path / "other.used").touch()
    tasks = [Wait(tmp_path, "own", seconds=60), Wait(tmp_path, "other")]
    pool: Pool[Wait] = Pool(2)

    def on_poll() -> None:
        for task in pool.active:
            pool.stop(task)

    with pool:
        codes = {task.name: code for task, code in pool.run(tasks, on_poll)}
    assert codes == {"own": -signal.SIGTERM, "other": EXIT_INTERRUPTED}


def test_leaving_the_pool_stops_what_it_started(tmp_path: Path) -> None:
    tasks = [Wait(tmp_path, "bad", code=1), Wait(tmp_path, "long", seconds=60)]
    with Pool[Wait](2) as pool:
        for task, code in pool.run(tasks, lambda: None):
            assert (task.name, code) == ("bad", 1)
            (process,) = pool.active.values()
            break
    assert process is not None
    assert not process.is_alive()


def double(number: int) -> tuple[int, int]:
    return 2 * number, os.getpid()


def die_of(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return number


def test_calls_in_workers_and_here() -> None:
    results = dict(call_each(double, ((number,) for number in range(20)), jobs=2, preload=PRELOAD))
    assert {number: value for number, (value, _) in results.items()} == {number: 2 * number for number in range(20)}
    assert os.getpid() not in {pid for _, pid in results.values()}
    for calls, jobs in (([(1,), (2,)], 1), ([(1,)], 2)):
        assert {pid for _, (_, pid) in call_each(double, calls, jobs=jobs, preload=PRELOAD)} == {os.getpid()}
    ((_, (_, pid)),) = call_each(double, [(1,)], jobs=1, preload=PRELOAD, isolated=True)
    assert pid != os.getpid()
    assert list(call_each(double, [], jobs=2, preload=PRELOAD)) == []


def test_calls_are_drawn_as_workers_become_free() -> None:
    drawn = []

    def calls() -> Iterator[tuple[int]]:
        for number in range(10):
            drawn.append(number)
            yield (number,)

    results = call_each(double, calls(), jobs=2, preload=PRELOAD)
    next(results)
    assert len(drawn) <= 4
    results.close()  # type: ignore[attr-defined]
    assert len(drawn) <= 4
    deadline = time.perf_counter() + 10
    while multiprocessing.active_children() and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


def test_a_worker_that_is_killed_is_an_error_in_one_line() -> None:
    with pytest.raises(WorkerKilled, match=r"^data\.workers=2: a process was killed, .*; data\.workers=1 needs less"):
        list(call_each(die_of, [(0,), (1,), (2,)], jobs=2, preload=PRELOAD, setting="data.workers"))


def test_workers_die_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\nfrom pathlib import Path\nfrom ssa.processes import call_each\n"
        "def work(number):\n    (Path(sys.argv[1]) / f'{os.getpid()}.pid').touch()\n    time.sleep(600)\n"
        "if __name__ == '__main__':\n    list(call_each(work, [(0,), (1,)], jobs=2, preload='ssa.errors'))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment) as parent:
        deadline = time.perf_counter() + 60
        while len(list(tmp_path.glob("*.pid"))) < 2 and time.perf_counter() < deadline:
            time.sleep(0.05)
        workers = [psutil.Process(int(path.stem)) for path in tmp_path.glob("*.pid")]
        assert len(workers) == 2
        parent.kill()
    assert not psutil.wait_procs(workers, timeout=10)[1]


def test_ctrl_c_while_the_preloaded_module_is_imported_prints_nothing(tmp_path: Path) -> None:
    began, go_on = tmp_path / "began", tmp_path / "go_on"
    (tmp_path / "slow.py").write_text(
        f"import os, time\nopen({str(began)!r}, 'w').close()\n"
        f"while not os.path.exists({str(go_on)!r}):\n    time.sleep(0.01)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom ssa.processes import start\n"
        "def work(): return 0\n"
        "if __name__ == '__main__':\n"
        "    try:\n        start(work, (), Path('log'), 'slow').join()\n"
        "    except KeyboardInterrupt:\n        sys.exit(130)\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = [sys.executable, str(script)]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        while not began.exists() and parent.poll() is None:
            time.sleep(0.05)
        os.killpg(parent.pid, signal.SIGINT)
        parent.wait(60)
        go_on.touch()
        said = parent.communicate(timeout=60)[1]
    assert (parent.returncode, said) == (130, "")


def test_a_started_process_can_be_interrupted(tmp_path: Path) -> None:
    process = Wait(tmp_path, "long", seconds=60).start(rerun=False)
    while not ((tmp_path / "long.log").exists() and (tmp_path / "long.log").read_text()):
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 1
    assert "KeyboardInterrupt" in (tmp_path / "long.log").read_text()


def loaded(module: str) -> bool:
    return module in sys.modules


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are not forked")
@pytest.mark.parametrize(("named", "expected"), [(True, "True True"), (False, "False False")])
def test_a_module_named_first_is_imported_once_whatever_call_comes_first(named: bool, expected: str) -> None:
    program = f"""
import sys
from ssa import processes
from tests.test_processes import loaded
if __name__ == "__main__":
    if {named}:
        processes.preload("colorsys")
    for preload in ("json", "colorsys"):
        print(*(is_there for _, is_there in processes.call_each(
            loaded, [("colorsys",)], jobs=1, preload=preload, isolated=True)))
"""
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, **path}, capture_output=True, text=True)
    assert (" ".join(done.stdout.split()), done.stderr) == (expected, "")


def test_a_finished_task_is_not_started(tmp_path: Path) -> None:
    (tmp_path / "done.done").touch()
    assert run(Pool(1), Wait(tmp_path, "done")) == [("done", 0)]
    assert not Wait(tmp_path, "done").log.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interruptible(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_an_ignored_sighup_stays_ignored() -> None:  # as under nohup
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_task_that_always_fails_is_not_started_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another program seems to work on it whenever it fails."""
    seems = itertools.cycle([False, True])
    monkeypatch.setattr(Wait, "is_in_use", lambda self: next(seems))
    task = Wait(tmp_path, "fails", code=3)
    with Pool[Wait](1) as pool:
        assert list(pool.run([task], lambda: None)) == [(task, 3)]
    assert task.log.read_text().count("fails starts") == 4


ORPHAN = """
import os, signal, sys, threading, time
from pathlib import Path
from ssa import processes

def work(path):
    time.sleep(1)
    Path(path).write_text("done")
    return 0

if __name__ == "__main__":
    threading.Timer(float(sys.argv[2]), os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        processes.start(work, (sys.argv[1],), Path(sys.argv[1] + ".log"), "slow")
        time.sleep(9)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.1, 0.4, 0.8])
def test_ctrl_c_while_a_process_starts_leaves_none(tmp_path: Path, after: float) -> None:
    program = tmp_path / "program.py"
    program.write_text(ORPHAN)
    (tmp_path / "slow.py").write_text("import time; time.sleep(2)")
    done = subprocess.run(
        [sys.executable, program, tmp_path / "file", str(after)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "interrupted\n", done.stderr
    time.sleep(2)
    assert not (tmp_path / "file").exists()
