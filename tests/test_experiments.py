"""What every item of the paper has, and how items are computed: the command, kept parts, conclusions."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from experiments import study as study_module
from experiments.__main__ import main
from experiments.conclusion import Conclusion, shown
from experiments.item import HERE, SCALES, Item, ItemSettings, find, items
from experiments.study import Study, references
from ssa.statistics import Estimate, mean_interval

ITEMS = items()
NAMES = [item.name for item in ITEMS]
REQUIRED = {
    "attention_dilution",
    "fig1_temperature_map",
    "fig2_norms",
    "fig3_token_graph",
    "fig4_convergence",
    "table1_degree_temperature",
    "table2_denoising",
}
every_item = pytest.mark.parametrize("item", ITEMS, ids=NAMES)


def committed(item: Item, name: str) -> list[dict[str, str]]:
    with (item.folder / "results" / f"laptop_{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_papers_small_experiments_are_there() -> None:
    assert set(NAMES) >= REQUIRED


@every_item
@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_has_valid_settings(item: Item, scale: str) -> None:
    settings = item.settings(scale=scale, **item.values(scale))
    assert item.is_as_scaled(settings)
    assert settings.seeds >= {"smoke": 2, "laptop": 5, "gpu": 5, "paper": 3}[scale]


@every_item
def test_a_mistake_is_refused_before_torch_is_imported(item: Item) -> None:
    code = (
        "import sys; from experiments.__main__ import main; "
        f"code = main(['{item.name}', 'scale=huge']); print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert done.stderr.startswith("error: scale=huge: not one of the choices; valid: smoke, laptop, gpu, paper")


@every_item
def test_the_papers_cells_have_a_grade(item: Item) -> None:
    cells = references(item.name)
    assert cells
    for cell in cells:
        assert {"quantity", "method", "value", "grade", "note"} <= set(cell)
        assert cell["grade"] in "ABCD-"
        if cell["value"] != "-":
            float(cell["value"])


@every_item
def test_the_readme_says_what_the_committed_results_say(item: Item) -> None:
    readme = " ".join((item.folder / "README.md").read_text(encoding="utf-8").split())
    for row in committed(item, "conclusions"):
        assert row["sentence"] in readme
        assert row["verdict"] in ("holds", "does not hold", "undecided")


@every_item
def test_the_committed_results_are_of_the_settings_at_hand(item: Item) -> None:
    done = json.loads((item.folder / "results" / "laptop_study.json").read_text(encoding="utf-8"))
    assert item.is_as_scaled(item.settings(**done["settings"]))
    assert done["seconds"] < 30 * 60
    seeds = {row["seed"] for row in committed(item, "runs")}
    assert len(seeds) == done["settings"]["seeds"] >= 5


@every_item
def test_every_figure_is_there_as_vector_and_pixels(item: Item) -> None:
    results = item.folder / "results"
    pictures = {kind: {path.stem for path in results.glob(f"laptop_*.{kind}")} for kind in ("png", "svg")}
    assert pictures["png"] == pictures["svg"] != set()
    readme = (item.folder / "README.md").read_text(encoding="utf-8")
    assert any(f"results/{stem}.png" in readme for stem in pictures["png"])


def test_without_an_item_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(item.name in printed and item.purpose in printed for item in ITEMS)


def test_an_unknown_item_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fig2_norm"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: fig2_norm: no such item, did you mean fig2_norms?; valid: ")
    assert error.count("\n") == 1


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else found(name))
    assert main(["table2_denoising", "scale=smoke"]) == 2
    assert capsys.readouterr().err == (
        "error: scipy: not installed; to install what experiments need, pip install -e '.[experiments]'\n"
    )


calls: list[int] = []


def square(number: int) -> float:
    calls.append(number)
    if number < 0:
        raise ValueError("negative")
    return number * number / 3


@pytest.fixture
def study(tmp_path: Path) -> Study:
    calls.clear()
    settings = ItemSettings(scale="smoke", seeds=2, jobs=1, output_dir=str(tmp_path / "out"), to=str(tmp_path / "to"))
    return Study(find("table2_denoising"), settings, Console(file=open(tmp_path / "printed", "w")))


def test_parts_are_kept_and_equal_ones_computed_once(study: Study) -> None:
    parts = [(square, {"number": number}) for number in (1, 2, 1)]
    assert study.compute(parts) == [1 / 3, 4 / 3, 1 / 3]
    assert study.compute(parts) == [1 / 3, 4 / 3, 1 / 3]
    assert calls == [1, 2]


def test_what_is_done_before_a_failure_stays_done(study: Study) -> None:
    with pytest.raises(ValueError, match="negative"):
        study.compute([(square, {"number": number}) for number in (3, -1)])
    assert study.compute([(square, {"number": 3})]) == [3]
    assert calls == [3, -1]


def test_rerun_computes_again(study: Study) -> None:
    study.compute([(square, {"number": 3})])
    study.settings = study.settings.model_copy(update={"rerun": True})
    study.compute([(square, {"number": 3})])
    assert calls == [3, 3]


def test_other_code_computes_again(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    study.compute([(square, {"number": 3})])
    monkeypatch.setattr(study_module, "_sources", lambda module: "other")
    study.compute([(square, {"number": 3})])
    assert calls == [3, 3]


def test_tables_are_plain_and_short(study: Study) -> None:
    study.table("runs", [{"seed": 0, "loss": 1 / 3, "text": 'a, "b"', "absent": float("nan")}])
    assert (study.folder / "smoke_runs.csv").read_text() == 'seed,loss,text,absent\n0,0.333333,"a, ""b""",-\n'


def test_other_settings_do_not_touch_the_committed_results(tmp_path: Path) -> None:
    item = find("table2_denoising")
    values = item.values("laptop")
    console = Console(quiet=True)
    own = Study(item, item.settings(**values, output_dir=str(tmp_path)), console)
    other = Study(item, item.settings(**{**values, "seeds": 99}, output_dir=str(tmp_path)), console)
    assert own.folder == item.folder / "results"
    assert other.folder.parent == tmp_path / "experiments" / item.name


@pytest.mark.parametrize(
    ("low", "high", "expected", "verdict"),
    [
        (0.1, 0.3, "higher", "holds"),
        (0.1, 0.3, "lower", "does not hold"),
        (-0.3, -0.1, "lower", "holds"),
        (-0.3, -0.1, "higher", "does not hold"),
        (-0.1, 0.3, "higher", "undecided"),
        (0.0, 0.3, "higher", "undecided"),
        (float("nan"), float("nan"), "higher", "undecided"),
    ],
)
def test_a_verdict_is_what_the_interval_supports(low: float, high: float, expected: str, verdict: str) -> None:
    estimate = Estimate((low + high) / 2, low, high, 0.1, 5)
    assert Conclusion("it is so", "difference", estimate, expected).verdict == verdict  # type: ignore[arg-type]


def test_a_ratio_is_judged_against_one() -> None:
    conclusion = Conclusion("it is so", "ratio", Estimate(0.5, 0.2, 0.9, 0.1, 5), "higher", 1.0)
    assert conclusion.sentence == "Does not hold: it is so (ratio: 0.5, 95 % interval 0.2 to 0.9, 5 seeds)."


def test_an_estimate_is_shown_with_its_interval() -> None:
    assert shown(mean_interval([1.0, 2.0, 3.0])) == "2.000 [-0.484, 4.484]"


def test_the_shared_runs_are_settings_of_the_command_line() -> None:
    from experiments.launch import Run

    shared = yaml.safe_load((HERE / "runs.yaml").read_text())
    assert set(shared) == set(SCALES)
    for scale, overrides in shared.items():
        assert Run(tuple(overrides), scale).config.scale == scale
