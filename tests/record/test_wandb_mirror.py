"""W&B gets every row, and whatever becomes of it never stops a run.  Through W&B's real client and its own commands.

The tests marked `wandb_server` need a W&B backend on this machine: SSA_WANDB_SERVER names a program that serves one,
prints its address, and keeps what it gets in ``DIR/entity/PROJECT/RUN_ID/{meta,config,summary}.json, history.jsonl``.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wandb_backend import (
    KEY,
    assert_whole,
    attempts,
    received,
    server,
)

from ssa.config import Config
from ssa.errors import EXIT_INTERRUPTED, UserError
from ssa.record.environment import Environment
from ssa.record.run_record import RunRecord
from ssa.record.wandb_mirror import WandbMirror, check, choose_mode
from ssa.record.wandb_pictures import pictures

Configured = Callable[..., Config]
pytestmark = pytest.mark.usefixtures("fresh_wandb")
WANDB = Path(sys.executable).with_name("wandb")
NO_SERVER = "http://127.0.0.1:9"  # the port of the discard protocol, where nothing listens
ROWS = [{"step": i, "tokens": 64 * i, "train/loss": 1 / (i + 1), "lr": 1e-3, "count": 2**40 + i} for i in range(40)]


def begun(config: Config, step: int | None = None) -> RunRecord:
    record = RunRecord.open(config)
    record.begin(Environment({}, None), step=step)
    return record


def run(config: Config, rows: list[dict[str, Any]] = ROWS, exit_code: int = 0) -> RunRecord:
    """A complete run that logs the rows."""
    with begun(config) as record:
        mirror = WandbMirror.open(config, record)
        for row in rows:
            record.log(row)
            mirror.log(row)
        mirror.summary({"best/val/loss": 2.5, "parameters.total": 1000})
        mirror.finish(exit_code)
    return record


def offline_files(record: RunRecord) -> list[Path]:
    """In the order of attempts."""
    return [
        file for it in attempts(record) for file in (record.folder / "wandb").glob(f"offline-run-*-{it['id']}/*.wandb")
    ]


def rows_in(file: Path, expected: int) -> int:
    """The rows of an offline file; W&B's service may write its end milliseconds after the run finished."""
    deadline = time.monotonic() + 10
    while (found := file.read_bytes().count(b"train/loss") // 2) < expected and time.monotonic() < deadline:
        time.sleep(0.01)  # each name is there twice: in the row, and in what the service derives from it
    return found


# Without a server


def test_no_key_means_offline_without_a_prompt(
    wandb_config: Configured, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    record = run(wandb_config())
    (file,) = offline_files(record)
    assert rows_in(file, len(ROWS)) == len(ROWS)
    (attempt,) = attempts(record)
    assert attempt["mode"] == "offline"
    assert re.fullmatch(re.escape(record.config.run_id) + "-[0-9a-f]{6}", attempt["id"])
    said = capfd.readouterr()
    assert said.out.count("\n") == 1
    assert said.out.startswith("W&B: offline (no API key is set; `wandb login`")
    assert said.out.endswith(f"wandb sync {file.parent}\n")
    assert said.err == ""
    assert list(Path.cwd().iterdir()) == [], "W&B's files are in the run folder"
    assert handlers == {number: signal.getsignal(number) for number in handlers}


def test_the_console_is_not_wrapped(wandb_config: Configured) -> None:
    before = (sys.stdout, sys.stdout.write, sys.stderr, sys.stderr.write)
    with begun(wandb_config()) as record, WandbMirror.open(record.config, record):
        assert before == (sys.stdout, sys.stdout.write, sys.stderr, sys.stderr.write)


def test_logger_none_does_not_import_wandb(smoke: Configured) -> None:
    record = begun(smoke())
    program = (
        "import sys; from ssa.record.run_files import load_config; from ssa.record.run_record import RunRecord;"
        "from ssa.record.wandb_mirror import WandbMirror, check;"
        "config = load_config(sys.argv[1]); check(config.logger);"
        "mirror = WandbMirror.open(config, RunRecord.open(config));"
        "mirror.log({'step': 1, 'tokens': 1}); mirror.summary({}); mirror.finish(0);"
        "print(sorted(sys.modules.keys() & {'wandb', 'torch', 'lightning'}))"
    )
    record.close()
    shown = subprocess.run([sys.executable, "-c", program, str(record.folder)], capture_output=True, text=True)
    assert (shown.stdout, shown.stderr) == ("[]\n", "")
    assert not (record.folder / "wandb.json").exists()


def test_the_package_is_missing(
    wandb_config: Configured, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    check(wandb_config("logger.mode=online").logger)
    record = run(wandb_config())
    assert record.rows() == ROWS
    assert re.fullmatch("W&B: did not start .*; the run continues with metrics.jsonl only\n", capfd.readouterr().out)


@pytest.mark.parametrize(
    ("wandb_mode", "mode"), [("disabled", "disabled"), ("offline", "offline"), ("online", "online")]
)
def test_wandb_mode_is_respected(
    wandb_config: Configured, monkeypatch: pytest.MonkeyPatch, wandb_mode: str, mode: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", wandb_mode)
    assert choose_mode(wandb_config().logger)[0] == mode
    assert choose_mode(wandb_config("logger.mode=online").logger)[0] == mode
    less = "offline" if mode == "online" else mode
    assert choose_mode(wandb_config("logger.mode=offline").logger)[0] == less


def test_wandb_mode_disabled_writes_nothing(
    wandb_config: Configured, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    record = run(wandb_config())
    assert not list(record.folder.glob("wandb*"))
    assert capfd.readouterr().out == "W&B: off (W&B's own setting, such as WANDB_MODE=disabled)\n"


def test_a_key_from_wandb_login_is_found(wandb_config: Configured, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    assert choose_mode(wandb_config().logger)[0] == "online"


def test_online_without_a_key(wandb_config: Configured) -> None:
    config = wandb_config("logger.mode=online")
    with pytest.raises(UserError, match=r"logger\.mode=online: no API key is set; `wandb login` or WANDB_API_KEY"):
        check(config.logger)
    with begun(config) as record, pytest.raises(UserError):
        WandbMirror.open(config, record)


def test_an_invalid_key(
    wandb_config: Configured, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    with pytest.raises(UserError, match="WANDB_API_KEY invalid: API key must have 40"):
        check(wandb_config("logger.mode=online").logger)
    assert attempts(run(wandb_config()))[0]["mode"] == "offline"
    assert "offline (WANDB_API_KEY invalid" in capfd.readouterr().out


def test_no_server(
    wandb_config: Configured, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", NO_SERVER)
    config = wandb_config("logger.timeout_seconds=2")
    record = begun(config)
    choose_mode(config.logger)  # imports W&B and starts its service: not the server's doing
    mirror = WandbMirror.open(config, record)
    mirror.log(ROWS[0])
    mirror.finish(0)
    assert [attempt["mode"] for attempt in attempts(record)] == ["offline"]
    assert re.fullmatch(r"W&B: offline \(no connection: .*\); send it later: wandb sync .*\n", capfd.readouterr().out)


def test_a_resumed_run_starts_with_all_rows(wandb_config: Configured) -> None:
    config = wandb_config()
    run(config, ROWS[:30])
    with begun(config, step=19) as record, WandbMirror.open(config, record) as mirror:
        mirror.log(ROWS[20])
    first, second = offline_files(record)
    assert (rows_in(first, 30), rows_in(second, 21)) == (30, 21)
    assert len({attempt["id"] for attempt in attempts(record)}) == 2


def test_an_open_wandb_run_is_not_reused_by_the_next_job(wandb_config: Configured) -> None:
    first, second = begun(wandb_config("seed=1")), begun(wandb_config("seed=2"))
    left_open = WandbMirror.open(first.config, first)
    WandbMirror.open(second.config, second).finish(0)
    left_open.finish(1)
    assert attempts(first)[0]["id"].startswith(first.config.run_id)
    assert attempts(second)[0]["id"].startswith(second.config.run_id)


def test_a_broken_service_ends_only_the_mirror(wandb_config: Configured, smoke: Configured) -> None:
    folders = []
    for seed in (0, 1):
        record = begun(wandb_config(f"seed={seed}"))
        record.close()
        folders.append(str(record.folder))
    program = """
import psutil, sys
from ssa.record.run_files import load_config
from ssa.record.run_record import RunRecord
from ssa.record.wandb_mirror import WandbMirror
for number, folder in enumerate(sys.argv[1:]):
    config = load_config(folder)
    with RunRecord.open(config) as record, WandbMirror.open(config, record) as mirror:
        for step in range(5):
            if (number, step) == (0, 2):
                (service,) = [child for child in psutil.Process().children() if "wandb" in child.name()]
                service.kill()
                service.wait()
            row = {"step": step, "tokens": step}
            record.log(row)
            mirror.log(row)
"""
    shown = subprocess.run([sys.executable, "-c", program, *folders], capture_output=True, text=True, timeout=60)
    assert (shown.returncode, shown.stderr) == (0, "")
    first, broken, second = shown.stdout.splitlines()
    assert first.startswith("W&B: offline (no API key")
    assert re.fullmatch(r"W&B: stopped \(.+\); the run continues with metrics.jsonl only", broken)
    assert second.startswith("W&B: offline (no API key"), "the next job of a multirun has a new service"
    assert [Path(folder, "metrics.jsonl").read_text().count("\n") for folder in folders] == [5, 5]


@pytest.mark.parametrize("error", [None, ValueError("x"), KeyboardInterrupt(), SystemExit(EXIT_INTERRUPTED)])
def test_a_run_is_always_closed(wandb_config: Configured, error: BaseException | None) -> None:
    import wandb

    def job() -> None:
        with WandbMirror.open(config, record):
            if error:
                raise error

    config = wandb_config()
    with begun(config) as record:
        if error:
            with pytest.raises(type(error)):
                job()
        else:
            job()
    assert wandb.setup().most_recent_active_run is None


# With a server


PROMPT = 30  # seconds; W&B alone retries for minutes, and a server that hangs takes 60


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and the result."""
    begin = time.perf_counter()
    result = action()
    return time.perf_counter() - begin, result


def sync(folder: Path, said: str) -> None:
    """Run the command in the last line, with a working server."""
    command = shlex.split(said.splitlines()[-1].partition("send it later: ")[2])
    assert command[:2] == ["wandb", "sync"]
    with server(folder):
        subprocess.run([str(WANDB), *command[1:]], check=True, capture_output=True, timeout=60)


@pytest.mark.wandb_server
def test_online(wandb_config: Configured, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with server(tmp_path / "server"):
        record = run(wandb_config("logger.tags=[a,b]"))
    assert_whole(tmp_path / "server", record)
    files, _ = received(tmp_path / "server", attempts(record)[0]["id"])
    assert files["meta"]["tags"] == ["ssa", "gpt2", "nano", "smoke", "text", "a", "b"]
    assert files["meta"]["job_type"] == "train"
    assert files["summary"]["parameters.total"] == 1000
    assert files["summary"]["best/val/loss"] == 2.5
    assert files["summary"]["train/loss"] == ROWS[-1]["train/loss"]
    metrics = files["meta"]["_wandb"]["m"]
    named = [metric.get("1") or metric.get("2") for metric in metrics]
    assert sorted(named) == ["*", "step", "tokens"]
    assert metrics[named.index("*")]["5"] == named.index("step") + 1, "step is the x-axis of all"
    said = capfd.readouterr()
    assert re.fullmatch(r"W&B: online, http://127\.0\.0\.1:\d+/entity/ssa/runs/.*\n", said.out)
    assert said.err == ""
    kept = [path for folder in (record.folder, tmp_path / "server") for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in kept if KEY.encode() in path.read_bytes()]
    assert list(Path.cwd().iterdir()) == []


EVALUATION = {"val/loss": 2.5, "val/attention_entropy": 0.5, "val/temperature_position": 1.25}
EVALUATION |= {f"val/attention_entropy/layer_00/head_{head:02d}": 0.1 * head for head in range(3)}
EVALUATION |= {f"val/temperature/{of}/layer_00/head_{head:02d}": 1.0 for of in ("query", "value") for head in range(3)}


def pictures_in(rows: list[dict[str, Any]], folder: Path) -> dict[str, tuple[int, int]]:
    """The pictures of the last row, with their sizes, all of which the server has as files."""
    from PIL import Image

    sizes = {}
    for key, value in rows[-1].items():
        if isinstance(value, dict):
            (file,) = folder.glob(f"entity/ssa/*/files/{value['path']}")
            sizes[key] = Image.open(file).size
    return sizes


@pytest.mark.wandb_server
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_pictures_and_sections(
    wandb_config: Configured, tmp_path: Path, capfd: pytest.CaptureFixture[str], mode: str
) -> None:
    rows = [{"step": 1, "tokens": 64, "train/loss": 2.0}, {"step": 1, "tokens": 64, **EVALUATION}]
    config = wandb_config(f"logger.mode={mode}")
    if mode == "online":
        with server(tmp_path / "server"):
            record = run(config, rows)
    else:
        record = run(config, rows)
        sync(tmp_path / "server", capfd.readouterr().out)
    assert_whole(tmp_path / "server", record)
    _, got = received(tmp_path / "server", attempts(record)[0]["id"])
    entropy, temperature = ((420, 420), (840, 420))
    assert pictures_in(got, tmp_path / "server") == {"attention/entropy_map": entropy, "temperature/map": temperature}
    assert not [key for row in got for key in row if "head" in key]
    assert {key.partition("/")[0] for row in got for key in row} == {
        *("step", "tokens", "train", "val", "attention", "temperature"),
    }


@pytest.mark.wandb_server
def test_seeds_are_one_group(wandb_config: Configured, tmp_path: Path) -> None:
    with server(tmp_path / "server"):
        metas = []
        for overrides in (["seed=0"], ["seed=1"], ["seed=1", "optim.lr=0.5"]):
            record = run(wandb_config(*overrides), ROWS[:1])
            metas.append(received(tmp_path / "server", attempts(record)[0]["id"])[0]["meta"])
    assert metas[0]["group"] == metas[1]["group"] != metas[2]["group"]
    assert metas[0]["tags"] == metas[1]["tags"]
    assert metas[0]["name"] != metas[1]["name"]


def test_pictures_need_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(pictures(EVALUATION)) == {"attention/entropy_map", "temperature/map"}
    assert pictures({"train/loss": 2.0}) == {}
    monkeypatch.setattr("ssa.viz.plot_style.available", lambda: False)
    assert pictures(EVALUATION) == {}


@pytest.mark.wandb_server
def test_the_command_line_is_not_sent(
    wandb_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "+hub.token=open-sesame"])
    with server(tmp_path / "server"):
        run(wandb_config())
    sent = [path for path in (tmp_path / "server").rglob("*") if path.is_file()]
    assert sent
    assert not [path for path in sent if b"open-sesame" in path.read_bytes()]


@pytest.mark.wandb_server
def test_non_finite_values(wandb_config: Configured, tmp_path: Path) -> None:
    values = {"a": float("nan"), "b": float("inf"), "c": -float("inf"), "none": None, "heads": [0.5, 1.5]}
    with server(tmp_path / "server"):
        record = run(wandb_config(), [{"step": 0, "tokens": 0, **values}])
    _, (row,) = received(tmp_path / "server", attempts(record)[0]["id"])
    assert repr(row) == repr({key: row[key] for key in row} | values)


@pytest.mark.wandb_server
def test_offline_then_sync(wandb_config: Configured, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record = run(wandb_config(), exit_code=EXIT_INTERRUPTED)
    sync(tmp_path / "server", capfd.readouterr().out)
    assert_whole(tmp_path / "server", record, state="failed")


@pytest.mark.wandb_server
def test_two_jobs_in_one_process_are_two_wandb_runs(wandb_config: Configured, tmp_path: Path) -> None:
    with server(tmp_path / "server"):
        first, second = run(wandb_config("seed=1"), exit_code=1), run(wandb_config("seed=2"))
    assert_whole(tmp_path / "server", first, state="failed")
    assert_whole(tmp_path / "server", second)
    assert len(list((tmp_path / "server").glob("*/*/*/meta.json"))) == 2


@pytest.mark.wandb_server
def test_the_newest_attempt_of_a_resumed_run_is_complete(wandb_config: Configured, tmp_path: Path) -> None:
    config = wandb_config()
    with server(tmp_path / "server"):
        run(config, ROWS[:30], exit_code=EXIT_INTERRUPTED)
        with begun(config, step=19) as record, WandbMirror.open(config, record) as mirror:
            for row in ROWS[20:]:
                record.log(row)
                mirror.log(row)
    assert record.rows() == ROWS
    assert_whole(tmp_path / "server", record)
    _, before = received(tmp_path / "server", attempts(record)[0]["id"])
    assert before == ROWS[:30]


@pytest.mark.wandb_server
@pytest.mark.parametrize(
    "fault",
    [
        "--fail-first 1000000",
        "--fail-first 1000000 --fail-status 401",
        "--fail-first 1000000 --fail-status 429",
        "--hang 60",
    ],
)
def test_a_server_that_does_not_work(
    wandb_config: Configured, tmp_path: Path, capfd: pytest.CaptureFixture[str], fault: str
) -> None:
    with server(tmp_path / "broken", *fault.split()):
        config = wandb_config()
        with begun(config) as record:
            choose_mode(config.logger)
            seconds, mirror = timed(lambda: WandbMirror.open(config, record))
            for row in ROWS:
                record.log(row)
                mirror.log(row)
            to_finish, _ = timed(lambda: mirror.finish(0))
    assert max(seconds, to_finish) < PROMPT
    said = capfd.readouterr()
    assert re.fullmatch(r"W&B: offline \(no connection: .*\); send it later: wandb sync .*\n", said.out)
    assert said.err == ""
    sync(tmp_path / "server", said.out)
    assert_whole(tmp_path / "server", record)


@pytest.mark.wandb_server
@pytest.mark.parametrize("fault", ["goes away", "hangs", "is killed"])
def test_a_server_that_stops_working(
    wandb_config: Configured, tmp_path: Path, capfd: pytest.CaptureFixture[str], fault: str
) -> None:
    options = ["--down-after", "1"] if fault == "goes away" else []
    with server(tmp_path / "broken", *options) as process:
        config = wandb_config()
        with begun(config) as record:
            mirror = WandbMirror.open(config, record)
            longest = 0.0
            for row in ROWS:
                if row["step"] == 20 and not options:
                    process.send_signal(signal.SIGSTOP if fault == "hangs" else signal.SIGKILL)
                record.log(row)
                seconds, _ = timed(lambda: mirror.log(row))  # noqa: B023 - called at once
                longest = max(longest, seconds)
            seconds, _ = timed(lambda: mirror.finish(0))
    assert max(longest, seconds) < PROMPT
    said = capfd.readouterr()
    assert re.search(r"\nW&B: not everything was sent within 4 s; send it later: wandb sync .*\n$", said.out)
    assert said.out.count("\n") == 2
    assert said.err == ""
    sync(tmp_path / "server", said.out)
    assert_whole(tmp_path / "server", record)


@pytest.mark.wandb_server
def test_a_slow_server(wandb_config: Configured, tmp_path: Path) -> None:
    with server(tmp_path / "server", "--fail-first", "2"):
        record = run(wandb_config("logger.timeout_seconds=30"))
    assert [attempt["mode"] for attempt in attempts(record)] == ["online"]
    assert_whole(tmp_path / "server", record)


@pytest.mark.wandb_server
def test_the_process_exits_at_once_after_losing_the_server(wandb_config: Configured, tmp_path: Path) -> None:
    record = begun(wandb_config())
    record.close()
    program = (
        "import sys, time; from ssa.record.run_files import load_config; from ssa.record.run_record import RunRecord;"
        "from ssa.record.wandb_mirror import WandbMirror;"
        "config = load_config(sys.argv[1]); record = RunRecord.open(config);"
        "mirror = WandbMirror.open(config, record); mirror.log({'step': 1, 'tokens': 1}); mirror.finish(0);"
        "print(time.time())"
    )
    with server(tmp_path / "broken", "--fail-first", "1000000"):
        shown = subprocess.run([sys.executable, "-c", program, str(record.folder)], capture_output=True, text=True)
        ended = time.time()
    assert (shown.returncode, shown.stderr) == (0, "")
    assert ended - float(shown.stdout.splitlines()[-1]) < PROMPT
