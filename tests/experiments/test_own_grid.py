"""Grids of one's own: a YAML file, ``compare``, and parts of a grid."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from grid_experiments import GRID, TINY, make_experiment, use

from experiments.__main__ import main
from experiments.engine.experiment import Experiment, find_experiment
from experiments.engine.grid import GridSettings, declared
from experiments.engine.grid_check import COLUMNS
from ssa.command_line.settings import parse
from ssa.errors import UserError
from ssa.record.run_files import read_rows
from ssa.report.convergence import Curve, speed_up

ROWS = [{"name": "plain", "overrides": ["model=gpt2"]}, {"name": "selective", "overrides": ["model=ssa_gpt2"]}]
METRIC = {"name": "loss", "key": "best/val/loss"}


@pytest.fixture
def train(small_text: Path) -> list[str]:
    """Overrides of tiny runs."""
    return [*TINY[1:], "data=text", f"data.train={small_text}", "data.tokenizer=bpe-512"]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def declare(**content: Any) -> None:
    Path("mine.yaml").write_text(yaml.safe_dump({"rows": ROWS, **content}, sort_keys=False))


def lines(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_file_becomes_a_table(train: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Without reference.csv, with every column that a run has, and with a claim that takes the defaults."""
    columns = [
        {"name": key, "key": key} for key in (*COLUMNS, "best/val/attention_entropy/layer_00", "config.optim.lr")
    ]
    columns[0] |= {"compared": True, "smallest": 0.01}
    declare(train=train, seeds=2, metrics=columns, claims=[{"row": "selective"}])
    assert main(["mine.yaml", "scale=smoke"]) == 0
    printed = capsys.readouterr().out
    assert "paper" not in printed
    assert "in all runs, selective has a lower best/val/loss than plain" in printed
    runs = lines("outputs/experiments/mine/smoke_runs.csv")
    assert [(row["row"], row["seed"]) for row in runs] == [
        ("plain", "0"),
        ("plain", "1"),
        ("selective", "0"),
        ("selective", "1"),
    ]
    assert not [(row, name) for row in runs for name, value in row.items() if value in ("", "-")]
    curves = [Curve.of(read_rows(next(Path("outputs").rglob(row["run"])))) for row in runs]
    expected = [1, 1, speed_up(curves[0], curves[2]), speed_up(curves[1], curves[3])]
    assert [float(row["speed_up"]) for row in runs] == pytest.approx(expected)
    assert len(lines("outputs/experiments/mine/smoke_conclusions.csv")) == 1
    assert "variant" in Path("outputs/experiments/mine/smoke_summary.md").read_text()
    assert main(["mine.yaml", "scale=smoke"]) == 0
    assert "4 of 4 runs have a record, which counts as finished" in capsys.readouterr().out
    assert lines("outputs/experiments/mine/smoke_runs.csv") == runs  # from records alone


@pytest.mark.slow
def test_models_are_compared_by_size(train: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["models=gpt2,ssa_gpt2", "sizes=nano", "seeds=2", f"train={','.join(train)}", "scale=smoke", "to=table"]
    assert main(["compare", *asked]) == 0
    assert [(row["group"], row["row"]) for row in lines("table/smoke_runs.csv")] == 2 * [("nano", "gpt2")] + 2 * [
        ("nano", "ssa_gpt2")
    ]
    assert not Path("table/smoke_conclusions.csv").exists()
    capsys.readouterr()
    assert main(["compare", *asked[:-2], "scale=smoke", "plan=true"]) == 0
    assert "0 of 4 runs to do" in " ".join(capsys.readouterr().out.split())


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"seed": 2}, "mine.yaml: seed: unknown key, did you mean seeds?"),
    "one row": ({"rows": ROWS[:1]}, "mine.yaml: rows="),
    "one seed": ({"seeds": 1}, "mine.yaml: seeds=1: out of range; valid: >= 2"),
    "scale in train": ({"train": ["scale=smoke"]}, "mine.yaml: train: scale=smoke: valid: on the command line"),
    "unknown override": (
        {"train": ["optim.lrr=1"]},
        "all runs, plain, seed 0: optim.lrr: unknown key, did you mean optim.lr?",
    ),
    "missing text": ({"train": ["data=text", "data.train=no.txt"]}, "all runs, plain, seed 0: data.train=no.txt: "),
    "row that is refused": (
        {"rows": [*ROWS, {"name": "third", "overrides": ["model=ssa_gpt3"]}]},
        "all runs, third, seed 0: model=ssa_gpt3: ",
    ),
    "unknown row of a claim": ({"claims": [{"row": "selectiv"}]}, "mine.yaml: grid: row selectiv: not in the grid; "),
    "column": (
        {"metrics": [{**METRIC, "key": "best/val/los"}]},
        "metrics: loss: key=best/val/los: no such column, did ",
    ),
    "setting": (
        {"metrics": [{**METRIC, "key": "config.optim.l"}]},
        "metrics: loss: key=config.optim.l: no such setting",
    ),
    "task": ({"metrics": [{**METRIC, "task": "length"}]}, "metrics: loss: task=length: not evaluated; valid: with "),
    "key of a task": (
        {"metrics": [{**METRIC, "task": "length"}], "evaluate": ["tasks=length"]},
        "metrics: loss: key=best/val/loss: valid: eval/length/METRIC",
    ),
    "unknown task": ({"evaluate": ["tasks=lengths"]}, "evaluate="),
    "equal rows": (
        {
            "rows": [
                {"name": "a", "overrides": ["model=gpt2"]},
                {"name": "b", "overrides": ["model=gpt2", "model/size=nano"]},
            ]
        },
        "all runs, b, seed 0: the same run as a; ",
    ),
    "seed of a row": (
        {
            "rows": [
                {"name": "a", "overrides": ["model=gpt2"]},
                {"name": "b", "overrides": ["model=ssa_gpt2", "seed=5"]},
            ]
        },
        "b: overrides: seed=5: a setting of the whole grid",
    ),
    "seed of a group": (
        {"groups": [{"name": "all", "overrides": [], "at": {"smoke": ["seed=7"]}}]},
        "all: overrides: seed=7: a setting of the whole grid",
    ),
    "group of another scale": (
        {"groups": [{"name": "all", "overrides": [], "at": {"laptop": []}}]},
        "scale=smoke: has no run of all; valid: another of groups=, or scale=laptop",
    ),
    "misspelled key": ({"row": []}, "mine.yaml: row: unknown key, did you mean rows?"),
    "no such field of the text": (
        {"train": ["data=text", "data.train=rows.jsonl", "data.text_column=txt"]},
        "all runs, plain, seed 0: data.text_column=txt: no such column in ",
    ),
    "launcher": ({"train": ["trainer.steps=0"]}, "all runs, plain, seed 0: trainer.steps=0: "),
}


@pytest.mark.parametrize(("content", "error"), MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_found_before_the_first_run(
    content: dict[str, Any], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    declare(**content)
    Path("rows.jsonl").write_text('{"text": "A document."}\n')
    assert main(["mine.yaml", "scale=smoke"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {error}")
    assert (printed.err.count("\n"), printed.out) == (1, "")
    assert not Path("outputs").exists()


@pytest.mark.parametrize(("name", "error"), [("none.yaml", "No such file"), ("folder.yaml", "Is a directory")])
def test_file_that_cannot_be_read_is_one_line(name: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("folder.yaml").mkdir()
    assert main([name]) == 2
    assert capsys.readouterr().err.startswith(f"error: {name}: cannot be read: {error}")


def test_compare_needs_two_models(capsys: pytest.CaptureFixture[str]) -> None:
    for asked, error in (
        (["models=gpt2"], "models="),
        ([], "models: "),
        (["models=gpt2,gpt3"], "all runs, gpt3, seed 0: model=gpt3: "),
    ):
        assert main(["compare", *asked]) == 2
        assert capsys.readouterr().err.startswith(f"error: {error}")


def test_part_of_a_grid() -> None:
    experiment = find_experiment("table3_main")
    values = experiment.values("laptop")
    asked = ['groups="GPT-2, fine-tuning"', "rows=vanilla,SSA", "scale=laptop"]
    grid = declared(experiment, parse(GridSettings, asked, values))
    assert [group.name for group in grid.groups] == ["GPT-2, fine-tuning"]
    assert [row.name for row in grid.rows] == ["vanilla", "SSA"]
    assert [claim.group for claim in grid.claims] == ["GPT-2, fine-tuning"]
    for wrong, error in (("groups=GPT2", "groups=GPT2: not in the grid"), ("rows=SSA", "rows=SSA: nothing to compare")):
        with pytest.raises(UserError, match=error):
            declared(experiment, parse(GridSettings, [wrong], values))


def test_file_in_the_readme_is_valid(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    content = (ROOT / "README.md").read_text().split("```yaml\n# my_grid.yaml\n")[1].split("```")[0]
    Path("my_grid.yaml").write_text(content)
    Path("books").mkdir()
    Path("books/one.txt").write_text("A book.\n")
    assert main(["my_grid.yaml", "scale=laptop", "plan=true"]) == 0
    assert "18 of 18 runs to do" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_all_experiments_in_turn(
    small_text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that fails does not stop the others, and the command resumes."""
    rows, broken = GRID["rows"][::2], [{**GRID["groups"][0], "overrides": ["model=gpt2", "data.train=gone.txt"]}]
    for name in ("first", "second", "third"):
        changes = {"groups": broken} if name == "second" else {}
        make_experiment(Path("grids"), small_text, ["trainer.steps=2"], name=name, rows=rows, **changes)
    use(Path("grids"), monkeypatch)
    monkeypatch.setattr(Experiment, "results", lambda self, output_dir: Path("results") / self.name)
    assert main(["all", "scale=smoke", "plan=true"]) == 0
    planned = capsys.readouterr().out
    assert [line.split()[:2] for line in planned.splitlines() if "grid" not in line and " 4 " in line] == [
        [name, "4"] for name in ("first", "second", "third")
    ]
    assert not Path("results").exists()
    assert main(["all", "scale=smoke"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "error: 1 of 3 experiments failed: second; rerun the command to resume\n"
    assert sorted(path.name for path in Path("results").glob("*/smoke_summary.csv")) == 3 * ["smoke_summary.csv"]
    assert main(["all", "scale=smoke"]) == 2
    assert capsys.readouterr().out.count("4 of 4 runs have a record, which counts as finished") == 2
