"""The run store: all runs of a folder in one table, also with damaged files."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import run_folders
import yaml
from conftest import ROOT

from ssa.errors import UserError
from ssa.files import write_json
from ssa.record.checksums import KEYS, with_checksums
from ssa.record.run_files import load_config, load_status, read_rows, read_summary
from ssa.record.run_record import RunRecord
from ssa.record.run_table import FIXED, FoundRun, table
from ssa.record.runs import curves, load
from ssa.record.runs import run_folders as run_folders_below

N = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return run_folders.make(tmp_path_factory.mktemp("runs") / "outputs", N)


@pytest.fixture
def run(made: list[Path], tmp_path: Path) -> Path:
    """A finished and evaluated run, beside another run."""
    shutil.copytree(made[1], tmp_path / "outputs" / "main" / made[1].name)
    return Path(shutil.copytree(made[0], tmp_path / "outputs" / "main" / made[0].name))


def outputs(run: Path) -> Path:
    return run.parent.parent


def found(run: Path, **options: Any) -> pd.Series[Any]:
    """The row of the run, after a check that the other run is unaffected."""
    runs = load(outputs(run), **options)
    others = runs.drop(run.name)
    assert [*others["status"], *others["damage"]] == ["finished", ""]
    return runs.loc[run.name]


# What the table holds


def test_made_folders_are_readable(made: list[Path]) -> None:
    assert len(made) == N
    for folder in made:
        config, status = load_config(folder), load_status(folder)
        assert config.run_id == folder.name
        assert read_rows(folder)[-1]["step"] == status.step
        if status.status == "finished":
            assert read_summary(folder)["run_id"] == folder.name


def flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    nested = [flat(value, f"{prefix}{key}.") for key, value in values.items() if isinstance(value, dict)]
    plain = {f"{prefix}{key}": value for key, value in values.items() if not isinstance(value, dict)}
    return {key: value for part in (plain, *nested) for key, value in part.items()}


def test_every_value_of_every_run(made: list[Path]) -> None:
    runs = load(made[0].parents[1])
    assert runs.index.name == "run_id"
    assert list(runs.index) == sorted(folder.name for folder in made)
    assert tuple(runs.columns[: len(FIXED)]) == FIXED
    for folder in made:
        row, state = runs.loc[folder.name].dropna().to_dict(), load_status(folder).status
        config = yaml.safe_load((folder / "config.yaml").read_text())
        wanted = {key: json.dumps(value) if value == [] else value for key, value in flat(config, "config.").items()}
        if state == "finished":
            summary = read_summary(folder)
            wanted |= {key: value for key, value in summary.items() if key not in ("run_id", "files", "sha256")}
        if (folder / "evaluation").exists():
            metrics = json.loads((folder / "evaluation" / "perplexity.json").read_text())["metrics"]
            wanted |= {f"eval/perplexity/{name}": metric["value"] for name, metric in metrics.items()}
        wanted |= {"folder": str(folder), "experiment": config["experiment"], "damage": "", "error": ""}
        rule = config["model"]["temperature"]["name"]
        wanted |= {"variant": "vanilla" if rule == "none" else rule}
        wanted |= {"commit": run_folders.COMMIT, "data_hash": run_folders.DATA_HASH}
        wanted["status"] = "interrupted" if state == "running" else state
        if state == "failed":
            wanted["error"] = "TrainingDiverged: the loss is not finite at step 10"
        assert row == {key: value for key, value in wanted.items() if value is not None}
    assert set(runs["status"]) == {"finished", "failed", "interrupted"}


def test_the_documented_example(made: list[Path]) -> None:
    example = (ROOT / "docs" / "runs.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(example.split("\n\n")[1].splitlines()) <= 5
    done = subprocess.run(
        [sys.executable, "-c", example + "\nimport sys; print({'torch', 'wandb', 'lightning'} & sys.modules.keys())"],
        cwd=made[0].parents[2],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "set()", "no heavy imports"
    assert "constant" in done.stdout


def test_the_documented_columns(made: list[Path]) -> None:
    text = (ROOT / "docs" / "runs.md").read_text()
    assert [name for name in FIXED if f"| `{name}` |" not in text] == []
    runs = load(made[0].parents[1])
    named = ["config.seed", "config.model.temperature.query.token", "best/val/attention_entropy/layer_00/head_03"]
    assert set(named) <= set(runs) & set(text.replace("`", " ").replace(",", " ").split())


def of(run_id: str, **values: Any) -> FoundRun:
    known: dict[str, Any] = {"folder": "f", "status": "finished", "config": {}, "summary": {}, "evaluations": {}}
    return FoundRun(**{"run_id": run_id, "experiment": "main", **known, **values})


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], "int64"),
        ([1, 2.0], "int64"),  # W&B may hand back 2.0 for 2
        ([1, 2.5], "float64"),
        ([1, None], "float64"),
        ([1, math.nan], "float64"),
        ([1, math.inf], "float64"),
        ([1, 2**60 + 1], "float64"),
        ([True, False], "bool"),
        ([True, None], "object"),
        ([True, 1], "object"),
        (["a", "b"], "object"),
        (["a", None], "object"),
        ([8, "auto"], "object"),
        ([1, 10**400], "object"),
        ([None, None], "object"),
    ],
)
def test_types(values: list[Any], dtype: str) -> None:
    runs = table([of(str(number), config={"x": value}) for number, value in enumerate(values)])
    assert runs["config.x"].dtype == dtype
    assert [None if pd.isna(value) else value for value in runs["config.x"]] == [
        None if value is None or value != value else float(value) if dtype == "float64" else value for value in values
    ]


def test_absent_sections() -> None:
    config: dict[str, Any] = {"key": {"token": "shared", "tags": ["a", "b"]}}
    runs = table([of("a", config=config), of("b", config={"key": None})])
    assert list(runs["config.key.token"]) == ["shared", None]
    assert list(runs["config.key.tags"]) == ['["a", "b"]', None]
    assert runs["config.key"].isna().all()


def test_non_finite_values(run: Path) -> None:
    summary = read_summary(run)
    write_json(run / "summary.json", {**summary, "best/val/loss": math.nan, "best/test/loss": math.inf, "x": -math.inf})
    row = found(run)
    assert math.isnan(row["best/val/loss"])
    assert (row["best/test/loss"], row["x"]) == (math.inf, -math.inf)


def test_metric_names_of_an_old_summary_are_translated(run: Path) -> None:
    """In version 0.1, ``val/loss`` in summary.json was that of the best weights."""
    now, row = read_summary(run), found(run)
    old = {name.removeprefix("best/").removeprefix("reference/"): value for name, value in now.items()}
    assert {"val/loss", "test/perplexity", "val/unigram_perplexity", "val/bigram_perplexity"} <= set(old)
    values = {name: value for name, value in old.items() if name not in KEYS}
    write_json(run / "summary.json", with_checksums(run, values, {}))
    assert read_summary(run).keys() == now.keys()
    pd.testing.assert_series_equal(found(run), row)


def test_curves(run: Path) -> None:
    rows, frame = read_rows(run), curves(run)
    assert list(frame["step"]) == [row["step"] for row in rows]
    assert frame["val/loss"].count() == sum("val/loss" in row for row in rows)
    assert list(frame["val/loss"].dropna()) == [row["val/loss"] for row in rows if "val/loss" in row]


# Which folders are runs


def test_no_folder_and_no_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"folder=.*nowhere: no such folder"):
        load(tmp_path / "nowhere")
    empty = load(tmp_path)
    assert (tuple(empty.columns), empty.index.name, len(empty)) == (FIXED, "run_id", 0)
    assert empty[empty["status"] == "finished"].empty


def test_other_folders_are_skipped(run: Path) -> None:
    wanted = load(outputs(run))
    shutil.copytree(run, run.with_name(f"{run.name}.replaced-1"))
    shutil.copytree(run, run.with_name(".hidden"))
    for name, content in {"config.yaml": "a: 1", "provenance.json": "{}", "status.json": "{}"}.items():
        folder = outputs(run) / f"no-run-{name}"
        folder.mkdir()
        (folder / name).write_text(content)
    pd.testing.assert_frame_equal(load(outputs(run)), wanted)
    assert list(load(run).index) == [run.name], "one run's own folder will do"


def test_links_are_followed_once(run: Path, tmp_path: Path) -> None:
    place = tmp_path / "linked"
    (place / "real").mkdir(parents=True)
    run.rename(place / "real" / run.name)
    (place / "again").symlink_to(place / "real")
    (place / "main").symlink_to(run.parent)
    (run.parent / "loop").symlink_to(place)
    (other,) = (path.name for path in run.parent.iterdir() if path.name != "loop")
    assert [path for path, _ in run_folders_below(place)] == [place / "real" / run.name, place / "main" / other]


def test_duplicate_run_ids(run: Path, made: list[Path], tmp_path: Path) -> None:
    def status(folder: Path, **values: Any) -> None:
        write_json(folder / "status.json", {**json.loads((folder / "status.json").read_text()), **values})

    again = Path(shutil.copytree(run, outputs(run) / "experiments" / "main" / run.name))
    renamed = Path(shutil.copytree(run, run.with_name("a-copy")))
    for number, folder in enumerate((again, renamed)):
        status(folder, time=f"2030-01-0{number + 1}T00:00:00+00:00")
    assert len(load(outputs(run))) == 2
    assert found(run)["folder"] == str(run), "the others' status.json was changed"
    assert found(run, checked=False)["folder"] == str(renamed), "the newest"
    status(renamed, status="interrupted")
    status(run, status="failed")
    assert load(outputs(run)).loc[run.name, "folder"] == str(again), "the finished one"


def test_running_without_a_process_is_interrupted(made: list[Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made[run_folders.KILLED], tmp_path / "main" / made[run_folders.KILLED].name))
    assert list(load(tmp_path)["status"]) == ["interrupted"]
    with RunRecord.open(load_config(folder).model_copy(update={"resume": str(folder)})):
        assert list(load(tmp_path)["status"]) == ["running"]


# Damage

Harm = Callable[[Path], object]


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_yaml(path: Path) -> None:
    path.write_text("a: [1, 2\nb: }")


def no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00" * 20)


def other_type(path: Path) -> None:
    path.write_text("[1, 2]")


def edited(path: Path) -> None:
    text = path.read_text()
    changed = re.sub(r"(: [\d.]*)4", r"\g<1>5", text, count=1)
    assert changed != text
    path.write_text(changed)


@pytest.mark.parametrize("name", ["config.yaml", "status.json", "evaluation/perplexity.json", "summary.json"])
@pytest.mark.parametrize("harm", [Path.unlink, torn, no_yaml, no_text, other_type])
@pytest.mark.parametrize("checked", [True, False])
def test_a_damaged_file_empties_only_its_columns(run: Path, name: str, harm: Harm, checked: bool) -> None:
    before = found(run)
    harm(run / name)
    row = found(run, checked=checked)
    if not checked and (harm, name) == (Path.unlink, "evaluation/perplexity.json"):
        assert row["damage"] == "", "only checksums know that there was one"
    else:
        assert row["damage"].startswith(f"{name} "), row["damage"]
        assert row["damage"].count(name) == 1
    lost = {"config.yaml": "config.", "evaluation/perplexity.json": "eval/", "summary.json": ""}.get(name, "-")
    kept = [key for key in before.dropna().index if key not in FIXED and not (lost and key.startswith(lost))]
    if name == "summary.json":
        kept = [key for key in kept if key.startswith(("config.", "eval/"))]
    assert row[kept].equals(before[kept])
    assert not [key for key in row.dropna().index if key.startswith(lost) and lost]
    assert row["status"] == "finished"
    assert row["experiment"] == "main"
    assert row["commit"] == run_folders.COMMIT


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "status.json", "summary.json", "environment.json", "metrics.jsonl", "evaluation/perplexity.json"],
)
def test_an_edited_file_is_named(run: Path, name: str) -> None:
    edited(run / name)
    assert found(run)["damage"] == f"{name} changed"
    assert found(run, checked=False)["damage"] == ""


def test_several_changes_are_named(run: Path) -> None:
    edited(run / "metrics.jsonl")
    (run / "config.yaml").unlink()
    assert sorted(found(run)["damage"].split("; ")) == ["config.yaml removed", "metrics.jsonl changed"]


def test_runs_without_checksums(run: Path) -> None:
    before = found(run)
    summary = {key: value for key, value in read_summary(run).items() if key not in ("files", "sha256", "commit")}
    write_json(run / "summary.json", summary)
    row = found(run)
    assert row["damage"] == "no checksums"
    assert row.drop("damage").equals(before.drop("damage")), "the commit is in environment.json"


def _equal_json(one: bytes, other: bytes) -> bool:
    """Whether two texts differ only in white space, which is no damage to a summary."""
    with suppress(ValueError):
        return bool(json.loads(one) == json.loads(other))
    return False


@pytest.mark.slow
def test_no_edit_affects_other_runs(run: Path) -> None:
    numbers = random.Random(0)
    texts = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for _ in range(100):
        path = numbers.choice(list(texts))
        content = bytearray(texts[path])
        for _ in range(numbers.choice((1, 3, 30))):
            content[numbers.randrange(len(content))] = numbers.choice(b'{}[]":,-0159eE.naN \n\x00\xff')
        path.write_bytes(content)
        if bytes(content) != texts[path] and "metrics" not in path.name and not _equal_json(content, texts[path]):
            found = load(outputs(run))
            assert found["damage"].str.startswith(str(path.relative_to(run))).sum() == 1
        path.write_bytes(texts[path])


@pytest.mark.parametrize("name", ["summary.json", "environment.json", "status.json", "config.yaml"])
def test_files_nested_too_deeply(run: Path, name: str) -> None:
    (run / name).write_text("[" * 100_000)
    assert load(outputs(run))["damage"].str.startswith(name).sum() == 1


def test_damage_of_an_unfinished_run(made: list[Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made[run_folders.FAILED], tmp_path / "main" / made[run_folders.FAILED].name))
    torn(folder / "status.json")
    torn(folder / "environment.json")
    (row,) = load(tmp_path).to_dict("records")
    assert (row["status"], row["error"]) == ("failed", "status.json damaged")
    assert row["damage"] == "status.json damaged; environment.json damaged"
    assert (row["commit"], row["data_hash"]) == ("", "")


# How much it takes

MEASURE = """
import resource, sys, time
from ssa.record.runs import load
runs = load(sys.argv[1])
used = resource.getrusage(resource.RUSAGE_SELF)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss has the parent's too
print(len(runs), used.ru_utime + used.ru_stime, int(peak.split()[1]) / 1024)
"""


@pytest.mark.slow
def test_2000_runs(tmp_path: Path) -> None:
    run_folders.make(tmp_path, 2000)
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)}).stdout
    n, seconds, megabytes = map(float, shown.split())
    assert n == 2000
    assert seconds < 9, "processor time: twice that of two AVX2 cores, so that only a loader that is not linear fails"
    assert megabytes < 400
