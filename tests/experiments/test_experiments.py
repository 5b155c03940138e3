"""Experiments of the paper: their files, the command, cached jobs, conclusions."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from programs import launch
from rich.console import Console

from experiments.__main__ import main
from experiments.engine import job_cache
from experiments.engine import source_hash as source_hash_module
from experiments.engine.claims import EffectSizes
from experiments.engine.conclusion import Conclusion
from experiments.engine.context import ExperimentContext
from experiments.engine.experiment import (
    SHARED,
    Experiment,
    ExperimentSettings,
    all_experiments,
    find_experiment,
)
from experiments.engine.grid import declared
from experiments.engine.grid_runs import seeds
from experiments.engine.source_hash import source_hash
from experiments.engine.verdict import Comparison, decide
from ssa.config import SCALES
from ssa.errors import UserError
from ssa.report import renderings
from ssa.report.tables import Table
from ssa.statistics import Estimate, mean_interval, shown

ALL = all_experiments()
NAMES = [experiment.name for experiment in ALL]
REQUIRED = {
    "ablation_parameters",
    "ablation_qkv",
    "ablation_strategies",
    "ablation_token_position",
    "attention_dilution",
    "extra_parameters",
    "fig1_temperature_map",
    "fig2_norms",
    "fig3_token_graph",
    "fig4_convergence",
    "finetune_llm",
    "long_context",
    "noisy_text",
    "table1_degree_temperature",
    "table2_denoising",
    "table3_main",
    "table4_passkey",
}
# Grids with committed results, as are those of all experiments with an experiment.py
COMMITTED_GRIDS = {"ablation_token_position", "ablation_strategies"}
RESULTS = [  # smoke results are not committed
    (experiment, path.name.removesuffix("_provenance.json"))
    for experiment in ALL
    for path in sorted(experiment.folder.glob("results/*_provenance.json"))
    if not path.name.startswith("smoke_")
]


def parameters(results: list[tuple[Experiment, str]]) -> pytest.MarkDecorator:
    ids = [f"{experiment.name}, {scale}" for experiment, scale in results]
    return pytest.mark.parametrize(("experiment", "scale"), results, ids=ids)


every_experiment = pytest.mark.parametrize("experiment", ALL, ids=NAMES)
every_result = parameters(RESULTS)
every_result_of_a_grid = parameters([(experiment, scale) for experiment, scale in RESULTS if experiment.grid])


def committed(experiment: Experiment, scale: str, name: str) -> list[dict[str, str]]:
    with (experiment.folder / "results" / f"{scale}_{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def fewest_seeds(experiment: Experiment, scale: str) -> int:
    return 2 if scale == "smoke" else 3 if experiment.grid else 5


def test_every_table_and_figure_of_the_paper_has_an_experiment() -> None:
    assert set(NAMES) >= REQUIRED
    assert {experiment.name for experiment in ALL if experiment.grid} >= {
        name for name in REQUIRED if name.startswith("ablation")
    }
    for experiment in ALL:
        assert (experiment.folder / "experiment.py").exists() == (experiment.grid is None)
        assert (experiment.folder / "README.md").read_text(encoding="utf-8").startswith("# ")


@every_experiment
@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_has_valid_settings(experiment: Experiment, scale: str) -> None:
    settings = experiment.settings(scale=scale, **experiment.values(scale))
    assert experiment.has_default_settings(settings)
    assert settings.seeds >= fewest_seeds(experiment, scale)


@every_experiment
def test_mistake_is_refused_before_torch_is_imported(experiment: Experiment, tmp_path: Path) -> None:
    code, out, err, heavy = launch("-m", "experiments", experiment.name, "scale=huge", cwd=tmp_path)
    assert (code, out, "torch" in heavy) == (2, "", False)
    assert err.startswith("error: scale=huge: not one of the choices; valid: smoke, laptop, overnight, gpu, paper")


@every_experiment
def test_reference_values_have_a_grade(experiment: Experiment) -> None:
    cells = experiment.references()
    assert cells
    for cell in cells:
        assert {"quantity", "method", "value", "grade", "note"} <= set(cell)
        assert cell["grade"] in "ABCD-"
        if cell["value"] != "-":
            float(cell["value"])


def test_every_experiment_of_its_own_and_some_grids_have_results() -> None:
    assert {experiment.name for experiment, _ in RESULTS} >= COMMITTED_GRIDS | {
        experiment.name for experiment in ALL if not experiment.grid
    }


@every_result
def test_readme_quotes_every_committed_conclusion(experiment: Experiment, scale: str) -> None:
    readme = " ".join((experiment.folder / "README.md").read_text(encoding="utf-8").split())
    conclusions = committed(experiment, scale, "conclusions")
    assert conclusions
    for row in conclusions:
        assert row["sentence"] in readme
        assert row["verdict"].startswith(("holds", "does not hold", "practically equal", "undecided", "unfinished"))


@every_result_of_a_grid
def test_committed_verdicts_follow_from_the_committed_numbers(experiment: Experiment, scale: str) -> None:
    def number(text: str) -> float:
        return math.nan if text == "-" else float(text)

    rows, grid = committed(experiment, scale, "conclusions"), declared(experiment)
    settings = experiment.settings(scale=scale, **experiment.values(scale))
    comparisons = []
    for row, claim in zip(rows, grid.claims_at(scale), strict=True):
        (group,) = (group for group in grid.groups if group.name == claim.group)
        difference = Estimate(number(row["mean"]), math.nan, math.nan, number(row["sd"]), int(row["seeds"]))
        sizes = EffectSizes(number(row["smallest"]), None if row["paper"] == "-" else number(row["paper"]))
        planned = len(seeds(group, settings))  # type: ignore[arg-type]
        comparisons.append(Comparison(difference, claim.expected, sizes, planned))
    for row, decision in zip(rows, decide(comparisons), strict=True):
        assert row["verdict"] == decision.verdict
        bounds = (number(row["low"]), number(row["high"]))
        assert (decision.interval.low, decision.interval.high) == pytest.approx(bounds, rel=1e-4, nan_ok=True)


@every_result
def test_committed_results_have_the_current_settings(experiment: Experiment, scale: str) -> None:
    done = json.loads((experiment.folder / "results" / f"{scale}_provenance.json").read_text(encoding="utf-8"))
    assert experiment.has_default_settings(experiment.settings(**done["settings"]))
    seconds, hours = done["seconds_of_cached_jobs"] / done["settings"]["jobs"], 0.5 if scale == "laptop" else 8
    assert seconds < hours * 3600  # runs may have shared the machine
    found = {row["seed"] for row in committed(experiment, scale, "runs")}
    assert len(found) == done["settings"]["seeds"] >= fewest_seeds(experiment, scale)


@every_result_of_a_grid
def test_committed_table_matches_the_committed_runs(experiment: Experiment, scale: str) -> None:
    """Every cell has finished runs or a note on how to fill it; every declared run is listed."""
    plain = json.loads((experiment.folder / "results" / f"{scale}_summary.json").read_text(encoding="utf-8"))
    table = Table.of(plain)
    for ending, text in renderings.by_suffix(table).items():
        assert (experiment.folder / "results" / f"{scale}_summary.{ending}").read_text(encoding="utf-8") == text
    counted, grid = committed(experiment, scale, "runs"), declared(experiment)
    known = {row["run"] for row in counted}
    groups = [group for group in grid.groups if scale in group.at]
    found = {row["seed"] for row in counted}
    assert len(counted) == len(groups) * len(grid.rows) * len(found)
    for cell in (cell for row in table.rows for cell in row):
        assert set(cell.runs) <= known
        assert cell.state not in ("failed", "damaged")
        if cell.state in ("missing", "unmeasured"):
            assert "To fill it: python -m experiments" in cell.note or "seeds lack a run" in cell.note
        assert cell.state != "value" or cell.runs


RECORDS = [path for experiment in ALL for path in sorted(experiment.folder.glob("results/*_records.parquet"))]
RECORDS = [path for path in RECORDS if not path.name.startswith("smoke_")]  # those are not committed


def rendered(path: Path) -> Any:
    """A parameter; composing the configs of hundreds of runs takes a minute."""
    return pytest.param(path, marks=[] if path.name.startswith("laptop_") else pytest.mark.slow)


@pytest.mark.parametrize(
    "path", [rendered(path) for path in RECORDS], ids=[f"{path.parents[1].name}, {path.name}" for path in RECORDS]
)
def test_committed_records_render_the_committed_tables(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no waiting for a pretrained model
    name, scale = path.parents[1].name, path.name.removesuffix("_records.parquet")
    where = [f"output_dir={tmp_path}/out", f"to={tmp_path}/to"]
    assert main([name, f"scale={scale}", "render=true", *where]) == 0
    for table in path.parent.glob(f"{scale}_*.csv"):
        assert (tmp_path / "to" / table.name).read_bytes() == table.read_bytes(), table.name
    assert (tmp_path / "to" / path.name).read_bytes() == path.read_bytes()
    assert path.stat().st_size < 4e6


@every_result
def test_every_figure_exists_as_png_svg_and_pdf(experiment: Experiment, scale: str) -> None:
    results = experiment.folder / "results"
    pictures = {kind: {path.stem for path in results.glob(f"{scale}_*.{kind}")} for kind in ("png", "svg")}
    assert pictures["png"] == pictures["svg"] != set()
    readme = (experiment.folder / "README.md").read_text(encoding="utf-8")
    assert any(f"results/{stem}.png" in readme for stem in pictures["png"])
    assert {path.stem for path in results.glob(f"{scale}_*.pdf")} == pictures["png"]
    for stem in pictures["png"]:
        assert f"scale={scale}" in (results / f"{stem}.txt").read_text(encoding="utf-8")


def test_without_arguments_all_experiments_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(experiment.name in printed and experiment.purpose in printed for experiment in ALL)


def test_unknown_experiment_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fig2_norm"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: fig2_norm: no such experiment, did you mean fig2_norms?; valid: ")
    assert error.count("\n") == 1


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else found(name))
    assert main(["table2_denoising", "scale=smoke"]) == 2
    assert capsys.readouterr().err == (
        "error: scipy: not installed; to install all that experiments need: pip install -e '.[experiments]'\n"
    )


calls: list[int] = []


def square(number: int) -> float:
    calls.append(number)
    if number < 0:
        raise ValueError("negative")
    return number * number / 3


def draws(number: int) -> list[float]:
    import torch

    values = torch.randn(200, 200, generator=torch.Generator().manual_seed(number))
    return (values @ values).sum(0).tolist()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def context(tmp_path: Path) -> ExperimentContext:
    calls.clear()
    settings = ExperimentSettings(
        scale="smoke", seeds=2, jobs=1, output_dir=str(tmp_path / "out"), to=str(tmp_path / "to")
    )
    return ExperimentContext(
        find_experiment("table2_denoising"), settings, Console(file=open(tmp_path / "printed", "w"))
    )


def test_jobs_are_cached_and_equal_ones_computed_once(context: ExperimentContext) -> None:
    jobs = [(square, {"number": number}) for number in (1, 2, 1)]
    assert context._jobs.compute(jobs) == [1 / 3, 4 / 3, 1 / 3]
    assert context._jobs.compute(jobs) == [1 / 3, 4 / 3, 1 / 3]
    assert calls == [1, 2]


def test_jobs_finished_before_a_failure_stay_cached(context: ExperimentContext) -> None:
    with pytest.raises(ValueError, match="negative"):
        context._jobs.compute([(square, {"number": number}) for number in (3, -1)])
    assert context._jobs.compute([(square, {"number": 3})]) == [3]
    assert calls == [3, -1]


def test_rerun_recomputes(context: ExperimentContext) -> None:
    context._jobs.compute([(square, {"number": 3})])
    context._jobs.rerun = True
    context._jobs.compute([(square, {"number": 3})])
    assert calls == [3, 3]


@pytest.mark.slow
def test_several_processes_compute_the_same_as_one(context: ExperimentContext) -> None:
    jobs = [(draws, {"number": number}) for number in range(4)]
    alone = context._jobs.compute(jobs)
    context._jobs.rerun, context._jobs.jobs = True, 2
    assert context._jobs.compute(jobs) == alone


def test_killed_process_is_one_line_and_other_jobs_stay_cached(context: ExperimentContext) -> None:
    context._jobs.jobs = 2
    with pytest.raises(UserError, match="jobs=2: a process was killed, most often for lack of memory"):
        context._jobs.compute([(draws, {"number": 1}), (die, {})])


def test_changed_code_invalidates_the_cache(context: ExperimentContext, monkeypatch: pytest.MonkeyPatch) -> None:
    context._jobs.compute([(square, {"number": 3})])
    monkeypatch.setattr(job_cache, "source_hash", lambda module: "other")
    context._jobs.compute([(square, {"number": 3})])
    assert calls == [3, 3]


def test_table_has_six_digits_and_dashes_for_nan(context: ExperimentContext) -> None:
    context.table("runs", [{"seed": 0, "loss": 1 / 3, "text": 'a, "b"', "absent": float("nan")}])
    context.finish(1.0)
    assert (context.folder / "smoke_runs.csv").read_text() == 'seed,loss,text,absent\n0,0.333333,"a, ""b""",-\n'


@pytest.mark.parametrize("known", [True, False])
def test_paper_column_is_shown_if_a_value_is_known(
    context: ExperimentContext, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = "1.5" if known else "-"
    monkeypatch.setattr(Experiment, "references", lambda self: [{"value": "-"}, {"value": value}])
    context.summary("Losses.", [{"seed": 0, "paper": "-"}, {"seed": 1, "paper": value}], "In nats.")
    table = Table.of(json.loads(context.path("summary.json").read_text()))
    assert table.columns == (("seed", "paper") if known else ("seed",))
    assert table.caption == ("In nats." if known else "In nats. The paper's values are not known.")


def test_config_extends_shared_defaults() -> None:
    graph, table1 = find_experiment("fig3_token_graph"), find_experiment("table1_degree_temperature")
    for scale in SCALES:
        values = graph.values(scale)
        assert values.items() >= table1.values(scale).items()
        assert "grid_seeds" in values
    parameters = declared(find_experiment("ablation_parameters"))
    assert [group.name for group in parameters.groups] == ["GPT-2", "Pythia"]
    assert "parameters" in [metric.name for metric in parameters.metrics], "a list is replaced"


def test_caption_of_a_figure_is_a_file(context: ExperimentContext) -> None:
    with context.figure("curve", 2, 2, "What is drawn.") as drawing:
        drawing.add_subplot().plot([1, 2])
    assert context.path("curve.txt").read_text() == "What is drawn. scale=smoke.\n"
    assert "What is drawn" not in context.path("curve.svg").read_text()


def test_results_replace_earlier_ones_all_at_once(context: ExperimentContext) -> None:
    old = [context.folder / name for name in ("smoke_conclusions.csv", "smoke_runs.csv", "laptop_runs.csv")]
    for path in old:
        path.write_text("old")
    context.table("runs", [{"seed": 0}])
    assert [path.read_text() for path in old] == ["old", "old", "old"]
    context.finish(1.0)
    assert (context.folder / "smoke_runs.csv").read_text() == "seed\n0\n"
    assert sorted(path.name for path in context.folder.iterdir()) == [
        "laptop_runs.csv",
        "smoke_provenance.json",
        "smoke_runs.csv",
    ]


def test_failure_keeps_earlier_results(context: ExperimentContext) -> None:
    (context.folder / "smoke_runs.csv").write_text("old")
    context.table("runs", [{"seed": 0}])
    context.discard()
    assert [path.name for path in context.folder.iterdir()] == ["smoke_runs.csv"]
    assert (context.folder / "smoke_runs.csv").read_text() == "old"


@pytest.mark.parametrize("key", ["to", "output_dir"])
def test_file_instead_of_a_folder_is_one_line(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    folders = {"to": str(tmp_path / "to"), "output_dir": str(tmp_path / "out"), key: str(tmp_path / "file")}
    assert main(["table2_denoising", "scale=smoke", *(f"{name}={value}" for name, value in folders.items())]) == 2
    error = capsys.readouterr().err
    assert f"{key}={tmp_path / 'file'}" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("experiment", "argument", "message"),
    [
        ("attention_dilution", "rules=none", 'rules=["none"]: '),
        ("fig4_convergence", "rules=none,none", "rules=none,none: one twice; valid: each of them once"),
        ("fig1_temperature_map", "rule=none", "model/temperature=none: vanilla attention has no temperatures"),
        ("fig1_temperature_map", "layer=99", "layer=99: no such layer of query; valid: 0 to 2"),
        ("fig1_temperature_map", "run=nowhere", "nowhere is not a run folder"),
        ("attention_dilution", "seeds=1", "seeds=1: "),
    ],
)
def test_invalid_settings_are_refused_before_training(
    experiment: str, argument: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [f"output_dir={tmp_path}/out", f"to={tmp_path}/to"]
    assert main([experiment, "scale=smoke", argument, *where]) == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # the handler is restored
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("to/smoke_*"))


def test_source_hash_covers_imports_from_the_package() -> None:
    assert source_hash("ssa.theory.token_graph") != source_hash("ssa.theory.denoising")
    sources = {path.name for path in source_hash_module._sources("ssa.theory.token_graph").values()}
    assert {"token_graph.py", "attention_map.py", "ensemble.py", "temperature.py", "config.py"} <= sources
    assert "train.py" not in sources


def test_committed_denoising_checks_passed() -> None:
    assert {row["passed"] for row in committed(find_experiment("table2_denoising"), "laptop", "checks")} == {"True"}


def test_other_settings_write_to_another_folder(tmp_path: Path) -> None:
    experiment = find_experiment("table2_denoising")
    values = experiment.values("laptop")
    console = Console(quiet=True)
    own = ExperimentContext(experiment, experiment.settings(**values, output_dir=str(tmp_path)), console)
    other = ExperimentContext(
        experiment, experiment.settings(**{**values, "seeds": 99}, output_dir=str(tmp_path)), console
    )
    assert own.folder == experiment.folder / "results"
    assert other.folder.parent == tmp_path / "experiments" / experiment.name


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
def test_verdict_follows_the_interval(low: float, high: float, expected: str, verdict: str) -> None:
    estimate = Estimate((low + high) / 2, low, high, 0.1, 5)
    assert Conclusion("it is so", "difference", estimate, expected).verdict == verdict  # type: ignore[arg-type]


def test_ratio_is_compared_with_one() -> None:
    conclusion = Conclusion("it is so", "ratio", Estimate(0.5, 0.2, 0.9, 0.1, 5), "higher", 1.0)
    assert conclusion.sentence == "Does not hold: it is so (ratio: 0.5, 95% interval 0.2 to 0.9, 5 seeds)."


def test_bound_near_the_threshold_is_not_rounded_to_it() -> None:
    conclusion = Conclusion("it is so", "ratio", Estimate(1.1, 1.0004, 1.2, 0.1, 5), "higher", 1.0)
    assert conclusion.sentence == "Holds: it is so (ratio: 1.1, 95% interval 1.0004 to 1.2, 5 seeds)."


def test_estimate_is_shown_with_its_interval() -> None:
    assert shown(mean_interval([1.0, 2.0, 3.0])) == "2.000 [-0.484, 4.484]"


@pytest.mark.parametrize("name", ["runs.yaml", "grids.yaml"])
def test_shared_training_settings_are_valid_overrides(name: str) -> None:
    from ssa.launch.run import Run

    shared = yaml.safe_load((SHARED / name).read_text())
    assert set(shared) == set(SCALES)
    for scale, overrides in shared.items():
        assert Run(tuple(overrides), scale).config.scale == scale


def test_runs_of_figure_4_have_distinct_labels(tmp_path: Path) -> None:
    """Runs that differ only in learning rate are distinguished in messages and tables."""
    from experiments.fig4_convergence.experiment import finetuning_runs
    from ssa.launch.pool import outcome

    experiment = find_experiment("fig4_convergence")
    where = {"scale": "laptop", "output_dir": f"{tmp_path}/outputs"}
    settings = experiment.settings.model_validate({**experiment.values("laptop"), **where})
    tuned = finetuning_runs(settings, [[] for _ in range(settings.seeds)])
    runs = [run for by_rule in tuned.values() for of_rule in by_rule.values() for run in of_rule]
    assert len({run.label for run in runs}) == len(runs) == 30
    assert runs[-1].label == "fine-tuning, ssa, learning rate 0.003, seed 4"
    table = outcome(runs, {runs[-1]: "a reason"})
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert len(rows) == 6
    assert rows[0] == ("fine-tuning, none, learning rate 0.001", "", "", "5")
    assert rows[-1] == ("fine-tuning, ssa, learning rate 0.003", "", "1", "4")
