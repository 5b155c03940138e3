"""The run folder: complete after a kill, locked, and kept by resume and rerun."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from full_disk import fill_disk

from ssa.config import Config
from ssa.errors import EXIT_INTERRUPTED, UserError
from ssa.record.checksums import damage
from ssa.record.environment import Environment
from ssa.record.run_files import config_changes, load_config, load_status, read_environment, read_rows, read_summary
from ssa.record.run_record import RunRecord, read_status, run_folder

ENVIRONMENT = Environment({"host": "here"}, None)
Configured = Callable[..., Config]


@pytest.fixture
def config(smoke: Configured) -> Config:
    return smoke()


def begun(config: Config, environment: Environment = ENVIRONMENT, **arguments: Any) -> RunRecord:
    record = RunRecord.open(config)
    record.begin(environment, **arguments)
    return record


def row(step: int, **metrics: Any) -> dict[str, Any]:
    return {"step": step, "tokens": 8 * step, **metrics}


def finish(config: Config) -> Path:
    with begun(config) as record:
        record.log(row(1, **{"train/loss": 2.0}))
        record.finish({"best/val/loss": 2.0}, step=1)
    return record.folder


def test_a_run_from_start_to_finish(config: Config) -> None:
    with begun(config, Environment({"host": "here"}, "+x\n"), data_hash="abc") as record:
        record.log({"val/loss": 2.5, "tokens": 80, "step": 10})
        record.finish({"best/val/loss": 2.5}, step=10)
    folder = run_folder(config)
    assert folder == Path(config.output_dir) / config.experiment / config.run_id
    assert load_config(folder) == config
    assert yaml.safe_load((folder / "config.yaml").read_text()) == config.plain()
    assert read_environment(folder) == {"host": "here", "data_hash": "abc", "inputs": {}}
    assert (folder / "uncommitted.diff").read_text() == "+x\n"
    assert (folder / "metrics.jsonl").read_text() == '{"step": 10, "tokens": 80, "val/loss": 2.5}\n'
    summary = read_summary(folder)
    assert summary["best/val/loss"] == 2.5
    assert set(summary["files"]) == {path.name for path in folder.iterdir() if path.is_file()} - {"summary.json"}
    status = read_status(folder)
    assert (status.status, status.step, status.attempt, status.error) == ("finished", 10, 1, None)
    assert status.pid == os.getpid()
    assert {path.name for path in folder.parent.iterdir()} == {folder.name}, "no lock file is left"


def test_a_failed_start_leaves_no_files(config: Config, tmp_path: Path) -> None:
    def start() -> None:
        with RunRecord.open(config):
            raise UserError("data.path=nowhere: no such data")

    with pytest.raises(UserError):
        start()
    assert list(tmp_path.iterdir()) == []


def test_non_finite_values(config: Config) -> None:
    record = begun(config)
    record.log(row(1, loss=math.nan, up=math.inf, down=-math.inf, name="NaN-free", none=None, heads=[math.inf, 1.0]))
    record.finish({"best/val/loss": math.nan}, step=1)
    text = (record.folder / "metrics.jsonl").read_text()
    strict = json.loads(text, parse_constant=pytest.fail)
    assert (strict["loss"], strict["up"], strict["down"]) == ("NaN", "Infinity", "-Infinity")
    found = record.rows()[0]
    assert math.isnan(found["loss"])
    assert (found["up"], found["down"], found["name"], found["none"]) == (math.inf, -math.inf, "NaN-free", None)
    assert found["heads"] == [math.inf, 1.0]
    assert math.isnan(read_summary(record.folder)["best/val/loss"])


def test_floats_are_read_exactly(config: Config) -> None:
    record = begun(config)
    values = {"a": 0.1 + 0.2, "b": 5e-324, "c": 1e22, "d": 2**60 + 1}
    record.log(row(1, **values))
    record.rewind(1)
    assert {key: record.rows()[0][key] for key in values} == values


def test_resume_drops_rows_after_the_checkpoint(config: Config) -> None:
    with begun(config) as record:
        for step in range(5):
            record.log(row(step))
    with open(record.folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 5, "tok')  # as a kill leaves it
    assert [found["step"] for found in read_rows(record.folder)] == [0, 1, 2, 3, 4]
    with begun(config, step=2) as record:
        record.log(row(3, new=True))
    assert read_rows(record.folder) == [row(0), row(1), row(2), row(3, new=True)]
    assert load_status(record.folder).attempt == 2


def test_an_incomplete_row_is_dropped_even_if_no_other_is(config: Config) -> None:
    with begun(config) as record:
        record.log(row(1))
    with open(record.folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "tokens": 16}')  # whole but for its end of line
    begun(config, step=9).log(row(3))
    assert [found["step"] for found in read_rows(record.folder)] == [1, 3]


def test_a_row_is_written_whole_or_not_at_all(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    with begun(config) as record:
        record.log(row(1))
        length = len((record.folder / "metrics.jsonl").read_bytes())
        for room in range(length):
            with monkeypatch.context() as patch:
                fill_disk(patch, "metrics.jsonl", room)
                with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"):
                    record.log(row(2))
            assert record.rows() == [row(1)]
            assert (record.folder / "metrics.jsonl").stat().st_size == length
        record.log(row(2))
    assert read_rows(record.folder) == [row(1), row(2)]


DAMAGE = [
    '{"step": 4, "tok{"step": 5, "tokens": 40}',
    '{"step": 4, "tokens": \0}',
    '{"ste',
    '{"tokens": 8}',
    "\0\0",
    "",
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_row_after_the_checkpoint_is_not_read(damage: str, config: Config) -> None:
    with begun(config) as record:
        for step in range(1, 4):
            record.log(row(step))
        with open(record.folder / "metrics.jsonl", "a") as file:
            file.write(f"{damage}\n")
        record.log(row(6))
    begun(config, step=2).log(row(3, new=True))
    assert read_rows(record.folder) == [row(1), row(2), row(3, new=True)]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_row_before_the_checkpoint_is_named(damage: str, config: Config) -> None:
    with begun(config) as record:
        record.log(row(3))
        with open(record.folder / "metrics.jsonl", "a") as file:
            file.write(f"{damage}\n")
        record.log(row(6))
    before = {path: path.read_bytes() for path in record.folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2, is damaged.*; resume=.* resumes with the rows"):
        begun(config, step=6)
    assert {path: path.read_bytes() for path in record.folder.rglob("*") if path.is_file()} == before
    begun(resuming(config, record), step=6, n_rows=3)
    assert read_rows(record.folder) == [row(3), row(6)]


def resuming(config: Config, record: RunRecord) -> Config:
    return config.model_copy(update={"resume": str(record.folder)})


@pytest.mark.parametrize(
    ("kept", "problem"),
    [
        ([1, 2, 4, 5], "4 rows up to step 5, where 5 were written; none between steps 2 and 4"),
        ([1, 2], "2 rows up to step 5, where 5 were written"),
        ([1, 2, 3, 3, 4, 5], "6 rows up to step 5, where 5 were written"),
        ([1, 2, 4, 3, 5], "line 4, is out of order: step 3 after step 4"),
    ],
)
def test_lost_rows_are_named_and_the_run_can_still_be_resumed(
    config: Config, kept: list[int], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with begun(config) as record:
        for step in (1, 2, 3, 4, 5, 6):
            record.log(row(step))
    lines = (record.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (record.folder / "metrics.jsonl").write_text("".join(lines[step - 1] for step in [*kept, 6]))
    with pytest.raises(UserError, match=f"metrics.jsonl(: |, ){problem}; resume="):
        begun(config, step=5, n_rows=5)
    assert len((record.folder / "metrics.jsonl").read_text().splitlines()) == len(kept) + 1
    begun(resuming(config, record), step=5, n_rows=5)
    assert problem in capsys.readouterr().out
    assert [found["step"] for found in read_rows(record.folder)] == [
        s for s in kept if "order" not in problem or s != 3
    ]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("best/val/loss", "3.1", "best/val/loss=3.1: expected a number"),
        ("tokens_per_second", [1], r"tokens_per_second=\[1\]: expected a number"),
        ("seed", True, "seed=true: expected a number"),
        ("run_id", 3, "run_id=3: expected text"),
        ("best/val/perplexity", None, "it has no best/val/perplexity"),
    ],
)
def test_a_summary_of_other_types_is_named(config: Config, name: str, value: Any, problem: str) -> None:
    with begun(config) as record:
        record.finish({"best/val/loss": 2.0, name: value}, step=1)
    with pytest.raises(UserError, match=f"summary.json is damaged, or of another version: (it has no|{problem})"):
        read_summary(record.folder, complete=True)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"pid": -1}, "pid=-1: out of range; valid: >= 1"),
        ({"step": "3"}, "step=3: expected a whole number, not text"),
        ({"attempt": None}, "attempt=null: expected a whole number"),
        ({"more": 1}, "more: unknown key"),
    ],
)
def test_a_status_of_other_types_is_named(config: Config, values: dict[str, Any], problem: str) -> None:
    folder = finish(config)
    (folder / "status.json").write_text(json.dumps({**json.loads((folder / "status.json").read_text()), **values}))
    with pytest.raises(UserError, match=f"status.json is damaged, or of another version: {problem}"):
        read_status(folder)


def test_a_start_from_step_0_drops_all_rows(config: Config) -> None:
    with begun(config) as record:
        record.log(row(0))
    assert begun(config).rows() == []


def test_earlier_attempts_keep_their_environment(config: Config) -> None:
    begun(config, Environment({"host": "first"}, "+first\n")).close()
    begun(config, Environment({"host": "second"}, None), step=0).close()
    record = begun(config, Environment({"host": "third"}, "+third\n"), step=0)
    hosts = {path.name: json.loads(path.read_text())["host"] for path in record.folder.glob("environment*.json")}
    assert hosts == {"environment-1.json": "first", "environment-2.json": "second", "environment.json": "third"}
    diffs = {path.name: path.read_text() for path in record.folder.glob("*.diff")}
    assert diffs == {"uncommitted-1.diff": "+first\n", "uncommitted.diff": "+third\n"}


def test_checkpoint_paths(config: Config) -> None:
    record = RunRecord.open(config)
    assert record.resume_checkpoints == []
    record.begin(ENVIRONMENT)
    for path in (record.previous_checkpoint, record.last_checkpoint, record.best_checkpoint):
        path.write_bytes(b"")
    assert record.resume_checkpoints == [record.last_checkpoint, record.previous_checkpoint]
    assert record.last_checkpoint.parent == record.best_checkpoint.parent == record.folder / "checkpoints"


@pytest.mark.parametrize("keep_last", [False, True])
def test_the_last_checkpoint_of_a_finished_run(smoke: Configured, keep_last: bool) -> None:
    record = begun(smoke(f"trainer.keep_last={keep_last}".lower()))
    for path in (record.previous_checkpoint, record.last_checkpoint, record.best_checkpoint):
        path.write_bytes(b"x")
    record.finish({}, step=1)
    kept = {path.name for path in record.best_checkpoint.parent.iterdir()}
    assert kept == ({"best.ckpt", "last.ckpt"} if keep_last else {"best.ckpt"})
    assert damage(record.folder) == []


@pytest.mark.parametrize("written", ["summary.json", "status.json"])
def test_a_kill_while_finishing_loses_no_checkpoint_before_the_run_counts_as_finished(
    config: Config, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    record = begun(config)
    record.last_checkpoint.write_bytes(b"x")

    unlink = Path.unlink

    def killed(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name in ("status.json", "previous.ckpt", "last.ckpt"):
            raise KeyboardInterrupt
        unlink(path, *arguments, **options)

    step_after = "ssa.record.run_record.write_atomic" if written == "summary.json" else "pathlib.Path.unlink"
    with monkeypatch.context() as patch:
        patch.setattr(step_after, killed)
        with pytest.raises(KeyboardInterrupt):
            record.finish({}, step=1)
    record.close()
    assert record.last_checkpoint.exists()
    assert (record.folder / "summary.json").exists()
    assert read_status(record.folder).status == ("interrupted" if written == "summary.json" else "finished")
    assert damage(record.folder) == (["status.json changed"] if written == "summary.json" else [])
    if written == "status.json":
        with RunRecord.open(config) as again:
            assert again.finished
            again.tidy()
        assert not record.last_checkpoint.exists()
        assert damage(record.folder) == []


def test_a_folder_named_by_version_0_2_is_found_and_no_copy_of_it(config: Config) -> None:
    new = run_folder(config)
    model, rest = config.model, f"{config.data.name}-s{config.seed}-{config.short_id}"
    older = new.with_name(f"{model.name}-nano-{model.temperature.name}-{rest}")
    assert older.name != new.name
    for name in (f"backup-{older.name}", f"copy-of-{config.short_id}", older.name):
        new.with_name(name).mkdir(parents=True)
        assert run_folder(config) == new, "not a run"
    for name in (f"backup-{older.name}", older.name):
        (new.with_name(name) / "config.yaml").write_text("")
    assert run_folder(config) == older
    new.mkdir()
    assert run_folder(config) == new


def test_finished(config: Config, smoke: Configured) -> None:
    assert not RunRecord.open(config).finished
    finish(config)
    assert RunRecord.open(config).finished
    assert not RunRecord.open(smoke("seed=1")).finished
    assert RunRecord.open(smoke("logger=wandb")).finished, "where it logs is not what it is"


def test_rerun_keeps_the_old_record(config: Config, smoke: Configured) -> None:
    folder = finish(config)
    for number in (1, 2):
        with RunRecord.open(smoke("rerun=true")) as record:
            record.last_checkpoint.write_bytes(b"old")
            assert not record.finished
            assert record.resume_checkpoints == []
            assert not folder.with_name(f"{folder.name}.replaced-{number}").exists(), "only once the data are there"
            record.begin(ENVIRONMENT)
            assert not record.last_checkpoint.exists()
            record.log(row(number))
            record.finish({}, step=number)
        assert read_rows(folder) == [row(number)]
    old = [folder.with_name(f"{folder.name}.replaced-{number}") for number in (1, 2)]
    assert [read_rows(path)[0] for path in old] == [row(1, **{"train/loss": 2.0}), row(1)]
    assert load_config(folder) == config, "rerun is of the command, not of the run"


def test_rerun_replaces_a_damaged_record(config: Config, smoke: Configured) -> None:
    folder = finish(config)
    (folder / "status.json").write_text("{")
    with pytest.raises(UserError, match=r"status\.json is damaged"):
        RunRecord.open(config)
    begun(smoke("rerun=true"))
    assert load_status(folder).status == "running"


def test_resume_of_a_moved_folder(config: Config, smoke: Configured, tmp_path: Path) -> None:
    moved = finish(config).rename(tmp_path / "moved")
    with begun(smoke(f"resume={moved}"), step=1) as record:
        assert record.folder == moved
    assert load_config(moved) == config


def test_resume_with_a_changed_config(config: Config, smoke: Configured) -> None:
    folder = finish(config)
    changed = smoke(f"resume={folder}", "trainer.steps=77", "model/temperature=none")
    with pytest.raises(UserError, match=rf"trainer\.steps: {config.trainer.steps} -> 77") as refused:
        RunRecord.open(changed)
    assert "model.temperature.query: {token: shared, position: log} -> null" in str(refused.value)
    RunRecord.open(smoke(f"resume={folder}", "logger=wandb", "data.workers=7")).close()


def test_config_changes(config: Config, smoke: Configured) -> None:
    assert config_changes(config, smoke("output_dir=elsewhere")) == []
    changes = config_changes(config, smoke("optim.grad_clip=null", "seed=5"))
    assert changes == [f"optim.grad_clip: {config.optim.grad_clip} -> null", "seed: 0 -> 5"]


def test_resume_with_other_data(config: Config) -> None:
    begun(config, data_hash="before").close()
    with (
        RunRecord.open(config) as record,
        pytest.raises(UserError, match="data_hash has changed since this run began \\(before, now after\\)"),
    ):
        record.begin(ENVIRONMENT, step=3, data_hash="after")
    assert load_status(run_folder(config)).attempt == 1, "nothing was written"
    begun(config, step=3, data_hash="before")


HOLD = """
import sys
from ssa.record.environment import Environment
from ssa.record.run_files import load_config
from ssa.record.run_record import RunRecord
record = RunRecord.open(load_config(sys.argv[1]))
if sys.argv[2] == "begin":
    record.begin(Environment({}, None))
step = 0
print("ready", flush=True)
while True:
    step += 1
    record.log({"step": step, "tokens": step, "text": "x" * 5000})
    if step == 100:
        print("100", flush=True)
"""


def hold(folder: Path, how: str = "begin") -> subprocess.Popen[str]:
    """A process that holds the run and logs rows until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_second_process_is_refused_and_a_killed_run_resumes(config: Config) -> None:
    folder = finish(config)
    with hold(folder) as process:
        try:
            with pytest.raises(UserError, match=rf"in use by process {process.pid} on "):
                RunRecord.open(config)
            assert read_status(folder).status == "running"
            assert process.stdout
            assert process.stdout.readline() == "100\n"
        finally:
            process.send_signal(signal.SIGKILL)
    assert load_status(folder).status == "running", "it had no time to say otherwise"
    assert read_status(folder).status == "interrupted"
    logged = read_rows(folder)
    assert [found["step"] for found in logged] == list(range(1, len(logged) + 1))
    assert len(logged) >= 100
    assert begun(config, step=50).rows() == logged[:50]


def test_a_run_is_locked_before_it_begins(config: Config, smoke: Configured) -> None:
    first = RunRecord.open(config)
    with pytest.raises(UserError, match="in use by another process"):
        RunRecord.open(config)
    RunRecord.open(smoke("seed=1")).close()
    first.close()
    RunRecord.open(config).close()


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("two\nlines"), "failed", "ValueError: two lines"),
        (KeyboardInterrupt(), "interrupted", None),
        (SystemExit(EXIT_INTERRUPTED), "interrupted", None),
        (SystemExit(1), "failed", "SystemExit: 1"),
    ],
)
def test_an_exception_ends_the_run(config: Config, error: BaseException, status: str, line: str | None) -> None:
    with pytest.raises(type(error)), begun(config):
        raise error
    found = load_status(run_folder(config))
    assert (found.status, found.error) == (status, line)


@pytest.mark.parametrize("change", [lambda folder: folder.rename(f"{folder}.moved"), shutil.rmtree])
def test_a_folder_that_is_gone_hides_no_error(config: Config, change: Callable[[Path], Any]) -> None:
    def end_with(what: Callable[[RunRecord], Any]) -> None:
        with begun(config) as record:
            change(record.folder)
            what(record)

    with pytest.raises(UserError, match="the run folder was removed or renamed while the run used it"):
        end_with(lambda record: record.log(row(1)))
    shutil.rmtree(run_folder(config).parent, ignore_errors=True)
    with pytest.raises(ZeroDivisionError):
        end_with(lambda record: 1 // 0)


def test_an_explicit_status_is_kept(config: Config) -> None:
    record = begun(config)
    record.step = 7
    record.set_status("failed", error="the loss is not finite")
    with pytest.raises(SystemExit), record:
        raise SystemExit(3)
    found = load_status(run_folder(config))
    assert (found.status, found.step, found.error) == ("failed", 7, "the loss is not finite")


def test_a_folder_that_cannot_be_created(smoke: Configured, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written: .*output_dir"):
        RunRecord.open(smoke(f"output_dir={tmp_path}/file"))


def test_resume_of_a_folder_without_a_run(smoke: Configured, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        RunRecord.open(smoke(f"resume={tmp_path}/nowhere/at/all"))
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("content", ["model: [", "", "[1, 2]", "model: 3", "\xff\xfe"])
def test_a_damaged_config(config: Config, content: str) -> None:
    folder = finish(config)
    (folder / "config.yaml").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.yaml is damaged") as refused:
        load_config(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"status": "running", "pid": 1}'])
def test_a_damaged_status(config: Config, content: str) -> None:
    folder = finish(config)
    (folder / "status.json").write_text(content)
    with pytest.raises(UserError, match=r"status\.json is damaged"):
        read_status(folder)


def test_an_unknown_status(config: Config) -> None:
    folder = finish(config)
    values = json.loads((folder / "status.json").read_text()) | {"status": "done"}
    (folder / "status.json").write_text(json.dumps(values))
    with pytest.raises(
        UserError, match="status=done: not one of the choices; valid: running, finished, interrupted, failed"
    ):
        read_status(folder)


def test_damage_inside_the_metrics(config: Config) -> None:
    folder = finish(config)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 2\n{"step": 3, "tokens": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2, is damaged"):
        read_rows(folder)


@pytest.mark.parametrize("read", [load_config, read_status, read_rows, read_summary, read_environment])
def test_not_a_run_folder(read: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        read(tmp_path)
