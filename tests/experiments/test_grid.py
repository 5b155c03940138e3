"""Grids of runs: declaration, and tables of valid and invalid runs."""

from __future__ import annotations

import math
import random
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from grid_experiments import grid, make_experiment, use
from run_folders import COMMIT, DATA_HASH, FAILED, INTERRUPTED
from scipy.stats import ttest_rel

from experiments.__main__ import main
from experiments.engine.experiment import Experiment, all_experiments, find_experiment
from experiments.engine.grid import Grid, GridSettings, declared
from experiments.engine.grid_results import Results
from experiments.engine.grid_runs import GridCell, runs
from experiments.engine.grid_tables import table
from ssa.command_line.settings import parse
from ssa.record.checksums import NO_CHECKSUMS
from ssa.report import tables

GRIDS = [experiment for experiment in all_experiments() if experiment.grid]
every_grid = pytest.mark.parametrize("experiment", GRIDS, ids=[experiment.name for experiment in GRIDS])
SEEDS = range(3)


# Declarations


@every_grid
def test_every_run_has_valid_overrides(experiment: Experiment) -> None:
    scale = "laptop"  # CI runs scale=smoke
    settings = experiment.settings.model_validate({**experiment.values(scale), "scale": scale})
    one_seed = settings.model_copy(update={"seeds": 1})
    planned = runs(declared(experiment), one_seed)  # type: ignore[arg-type]
    found = [run for run in planned.values() if run]
    assert {run.label: run.refusal for run in found if run.refusal} == {}
    assert len({run.config.run_id for run in found}) == len(found), "no two cells are one run"
    later = {cell.group for cell, run in planned.items() if run is None}
    assert later == {group.name for group in declared(experiment).groups if group.start and scale in group.at}


@every_grid
def test_reference_values_name_a_group_metric_and_row(experiment: Experiment) -> None:
    declaration = declared(experiment)
    quantities = {f"{group.name}: {metric.name}" for group in declaration.groups for metric in declaration.metrics}
    for cell in experiment.references():
        assert cell["quantity"] in quantities
        assert cell["method"] in {row.name for row in declaration.rows}


TWICE = [*grid()["rows"], grid()["rows"][0]]
CLAIM = grid()["claims"][0]
LOSS = grid()["metrics"][0]
SCRATCH = grid()["groups"][0]
SMALL = {"name": "small", "at": {"smoke": ["scale=smoke"]}}


def paper(**changes: Any) -> dict[str, Any]:
    """A claim against a size of the paper."""
    return {**CLAIM, "paper": {"quantity": "GPT-2: loss", "row": "SSA", "against": "constant", **changes}}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"claims": [{**CLAIM, "row": "SSAA"}]}, "row SSAA: not in the grid; valid: vanilla, constant, SSA"),
        ({"claims": [{**CLAIM, "against": "none"}]}, "row none: not in the grid; valid: vanilla, constant, SSA"),
        ({"claims": [{**CLAIM, "group": "GPT"}]}, "group GPT: not in the grid; valid: GPT-2"),
        ({"claims": [{**CLAIM, "metric": "Loss"}]}, "metric Loss: not in the grid; valid: loss, accuracy, parameters"),
        ({"claims": [{**CLAIM, "expected": "less"}]}, "claims.0.expected=less: not one of the choices"),
        ({"rows": TWICE}, "rows: a name twice in vanilla, constant, SSA, vanilla"),
        ({"groups": [SCRATCH, SCRATCH]}, "groups: a name twice in GPT-2, GPT-2"),
        (
            {"groups": [{**SCRATCH, "start": "small"}], "fine_tuning": {"pretrained": [SMALL]}},
            "group GPT-2: start=small is nowhere at laptop",
        ),
        (
            {"groups": [{**SCRATCH, "start": "large"}], "fine_tuning": {"pretrained": [SMALL]}},
            "start large: not in the grid; valid: small",
        ),
        (
            {"fine_tuning": {"pretrained": [{**SMALL, "published": {"smoke": "gpt2"}}]}},
            "pretrained small: at smoke both trained and published",
        ),
        (
            {"groups": [{**SCRATCH, "search": {"smoke": {"lr": [1e-3] * 4, "multiplier": [1]}}}]},
            "groups.0.search.smoke.lr=",
        ),
        ({"claims": [{**CLAIM, "metric": "parameters"}]}, "metric parameters: a claim needs smallest=, the smallest "),
        ({"metrics": [{**LOSS, "smallest": 0}]}, "metrics.0.smallest=0: out of range; valid: > 0"),
        ({"claims": [paper(row="SSAA")]}, "claims: paper: GPT-2: loss, SSAA: no value in "),
        ({"claims": [paper(against="vanilla")]}, "claims: paper: GPT-2: loss, vanilla: no value in "),
        (
            {"claims": [paper(row="constant", against="SSA")]},
            "claims: paper: 3.3 and 3.1 contradict a claim of a ",
        ),
        ({"claims": [paper(against="zero", log_ratio=True)]}, "claims: paper: 0 has no logarithm"),
        ({"note": "x"}, "note: unknown key, did you mean notes?"),
    ],
)
def test_invalid_declaration_is_one_line(
    changes: dict[str, Any],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_experiment(tmp_path / "grids", tmp_path / "text", **changes)
    use(tmp_path / "grids", monkeypatch)
    assert main(["tiny", "scale=smoke", f"output_dir={tmp_path}/out", f"to={tmp_path}/to"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder / 'config.yaml'}: grid: {line}")
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("to/*"))


# Tables of synthetic results


@pytest.fixture(scope="module")
def settings() -> GridSettings:
    return GridSettings(
        scale="smoke", seeds=3, train=["scale=smoke", "data.max_documents=7"], evaluate=["tasks=passkey"]
    )


Made = Callable[..., Results]


@pytest.fixture
def made(settings: GridSettings) -> Made:
    """A function that makes results of a grid with three rows; ``lost`` has the changes of runs, by cell."""
    declaration = Grid.model_validate(
        grid(groups=[SCRATCH, {"name": "large", "overrides": ["model=gpt2", "model/size=small"], "at": {"gpu": []}}])
    )

    def make(lost: dict[tuple[str, int], dict[str, Any] | None] | None = None, **changes: Any) -> Results:
        asked = settings.model_copy(update=changes.pop("settings", {}))
        planned = runs(declaration, asked)
        numbers = random.Random(1)
        rows = {}
        for cell, run in planned.items():
            assert run
            of_seed = {"vanilla": 3.0, "constant": 2.99, "SSA": 2.5}[cell.row] + cell.seed + numbers.gauss(0, 0.01)
            found = {"folder": f"out/{cell.row}-{cell.seed}", "status": "finished", "error": "", "damage": ""}
            found |= {"commit": COMMIT, "data_hash": DATA_HASH, "best/val/loss": of_seed, "parameters.total": 12345}
            found |= {"eval/passkey/accuracy": numbers.random()}
            change = (lost or {}).get((cell.row, cell.seed), {})
            if change is not None:
                rows[run.config.run_id] = {**found, **change}
        frame = pd.DataFrame.from_dict(rows, orient="index")
        failed = {planned[GridCell("GPT-2", *where)]: reason for where, reason in changes.pop("failed", {}).items()}
        unevaluated = {
            planned[GridCell("GPT-2", *where)]: reason for where, reason in changes.pop("unevaluated", {}).items()
        }
        assert not changes
        return Results(find_experiment("ablation_strategies"), declaration, asked, planned, failed, unevaluated, frame)  # type: ignore[arg-type]

    return make


PAPER = [
    {"quantity": "GPT-2: loss", "method": "SSA", "value": "2.4", "grade": "C", "note": "one source"},
    {"quantity": "GPT-2: loss", "method": "vanilla", "value": "-", "grade": "B", "note": "no cell"},
]


def cells(results: Results, row: str, group: str = "GPT-2") -> dict[str, tables.TableCell]:
    """Cells of a row, by column."""
    shown = table(results, PAPER)
    (found,) = (cells for cells in shown.rows if (cells[0].text, cells[1].text) == (group, row))
    return dict(zip(shown.columns, found, strict=True))


def losses(results: Results, row: str) -> list[float]:
    numbers = results.numbers("GPT-2", row, results.grid.metrics[0])
    return [numbers[seed] for seed in sorted(numbers)]


def ids(results: Results, row: str, *seeds: int) -> tuple[str, ...]:
    return tuple(str(results.run_id(GridCell("GPT-2", row, seed))) for seed in seeds or SEEDS)


def test_complete_grid(made: Made) -> None:
    results = made()
    shown = table(results, PAPER)
    assert shown.columns == (
        *("model", "temperature", "loss", "difference", "p (Holm)", "paper", "accuracy", "parameters"),
    )
    first, ssa = cells(results, "vanilla"), cells(results, "SSA")
    assert (first["difference"].text, first["difference"].state) == ("baseline", "none")
    assert first["loss"].runs == ids(results, "vanilla")
    assert {cell.state for cell in ssa.values()} == {"text", "value", "reference"}
    assert ssa["loss"].text.startswith(f"{sum(losses(results, 'SSA')) / 3:.4f} [")
    assert ssa["difference"].runs == (*ids(results, "SSA"), *ids(results, "vanilla"))
    assert ssa["parameters"].text == "12,345"
    assert (ssa["paper"].text, ssa["paper"].state, ssa["paper"].note) == ("2.4 (C)", "reference", "one source")
    assert (first["paper"].state, first["paper"].note) == ("none", "No cell.")
    assert "scale=smoke" in shown.caption
    assert "over 3 seeds" in shown.caption
    assert f"commit {COMMIT[:7]}; data {DATA_HASH[:8]}" in shown.caption
    assert "Holm" in shown.caption
    assert "Loss in nats per token." in shown.caption


def test_paper_column_without_a_known_value_is_left_out(made: Made) -> None:
    assert "paper" not in table(made(), [{**cell, "value": "-"} for cell in PAPER]).columns


def test_p_values_are_scipys_with_holms_correction(made: Made) -> None:
    results = made()
    base = losses(results, "vanilla")
    p = {row: float(ttest_rel(losses(results, row), base).pvalue) for row in ("constant", "SSA")}
    assert p["SSA"] < p["constant"]
    found = {one.row: one for one in results.statistics if one.metric.name == "loss"}
    assert found["SSA"].p == pytest.approx(p["SSA"])
    assert found["SSA"].p_holm == pytest.approx(2 * p["SSA"])
    assert found["constant"].p_holm == pytest.approx(max(2 * p["SSA"], p["constant"]))
    assert math.isnan(found["vanilla"].p_holm)


@pytest.mark.parametrize(
    ("change", "state", "reason"),
    [
        (None, "missing", "not run"),
        ({"status": "running"}, "missing", "running"),
        ({"status": "interrupted"}, "missing", "interrupted"),
        ({"status": "failed", "error": "the loss is not finite"}, "failed", "the loss is not finite"),
        ({"damage": "metrics.jsonl changed"}, "damaged", "left out, metrics.jsonl changed"),
        ({"best/val/loss": math.nan}, "missing", "has no best/val/loss"),
    ],
)
def test_invalid_run_is_left_out_with_its_reason(
    made: Made, change: dict[str, Any] | None, state: str, reason: str
) -> None:
    """Its reason and the command are named; other runs count, and pairs use the remaining seeds."""
    results = made({("SSA", 1): change})
    whole, cell = made(), cells(results, "SSA")
    assert cell["loss"].state == state
    assert cell["loss"].note.startswith(f"seed 1 {state} ({reason}")
    assert "python -m experiments ablation_strategies scale=smoke" in cell["loss"].note
    assert cell["loss"].runs == ids(results, "SSA", 0, 2)
    assert cell["difference"].runs == (*ids(results, "SSA", 0, 2), *ids(results, "vanilla", 0, 2))
    (one,) = (one for one in results.statistics if (one.row, one.metric.name) == ("SSA", "loss"))
    left = [losses(whole, row)[seed] for row in ("SSA", "vanilla") for seed in (0, 2)]
    assert one.difference.mean == pytest.approx((left[0] - left[2] + left[1] - left[3]) / 2)
    assert (one.mean.n, one.difference.n) == (2, 2)
    assert cells(results, "vanilla")["loss"] == cells(whole, "vanilla")["loss"]


def test_missing_baseline_run(made: Made) -> None:
    results = made({("vanilla", 0): None})
    assert cells(results, "SSA")["loss"].state == "value"
    assert cells(results, "SSA")["difference"].runs == (*ids(results, "SSA"), *ids(results, "vanilla", 1, 2))
    assert cells(results, "vanilla")["loss"].state == "missing"


def test_row_without_runs(made: Made) -> None:
    lost = made({("SSA", seed): None for seed in SEEDS})
    cell = cells(lost, "SSA")
    assert (cell["loss"].shown, cell["difference"].shown, cell["p (Holm)"].shown) == ("missing", "missing", "–")
    assert cell["loss"].note.startswith("seeds 0, 1, 2 missing (not run). ")
    (tested,) = (one for one in lost.statistics if (one.row, one.metric.name) == ("constant", "loss"))
    assert tested.p_holm == pytest.approx(min(1, 2 * tested.p)), "what is still to be run counts"


def test_row_with_one_run(made: Made) -> None:
    cell = cells(made({("SSA", seed): None for seed in (0, 1)}), "SSA")
    assert "[" not in cell["loss"].text + cell["difference"].text
    assert cell["p (Holm)"].state == "none"


def test_worst_gap_is_the_cells_state_and_all_are_named(made: Made) -> None:
    lost = {("SSA", 0): None, ("SSA", 1): {"damage": "config.yaml removed"}, ("SSA", 2): {"status": "failed"}}
    assert cells(made({**lost}), "SSA")["loss"].state == "failed"
    cell = cells(made({**lost, ("SSA", 2): {}}), "SSA")["loss"]
    assert cell.state == "damaged"
    assert (
        "seed 0 missing (not run); seed 1 damaged (left out, config.yaml removed). To fill it: rm -r out/SSA-1 && "
        in cell.note
    )


def test_run_that_failed_just_now(made: Made) -> None:
    """Its reason is the last line of the log; damage comes first, as it says how to repair it."""
    reasons = {("SSA", 0): "error: no data (x.log)", ("constant", 0): "error: damaged (y.log)"}
    results = made({("SSA", 0): None, ("constant", 0): {"damage": "status.json changed"}}, failed=reasons)
    assert cells(results, "SSA")["loss"].note.startswith("seed 0 failed (error: no data (x.log))")
    assert cells(results, "constant")["loss"].state == "damaged"


def test_run_whose_pretrained_run_has_not_finished(made: Made) -> None:
    results = made()
    lost = replace(results, planned={**results.planned, GridCell("GPT-2", "SSA", 0): None})
    note = cells(lost, "SSA")["loss"].note
    assert note.startswith(
        "seed 0 missing (its start or the search of its rates has not finished, or is damaged). To fill it: "
    )
    assert ids(lost, "SSA", 0) == ("None",)
    assert cells(lost, "SSA")["loss"].runs == ids(results, "SSA", 1, 2)


def test_failed_evaluation_affects_only_its_own_columns(made: Made) -> None:
    cell = cells(made(unevaluated={("SSA", 2): "evaluation: no memory (x.log)"}), "SSA")
    assert (cell["loss"].state, cell["accuracy"].state) == ("value", "failed")
    assert cell["accuracy"].note.startswith("seed 2 failed (evaluation: no memory (x.log))")


def test_run_without_checksums_is_valid(made: Made) -> None:
    assert cells(made({("SSA", 0): {"damage": NO_CHECKSUMS}}), "SSA")["loss"].state == "value"


def test_unmeasured_cell_names_the_command_that_fills_it(made: Made) -> None:
    train = find_experiment("ablation_strategies").values("smoke")["train"]
    results = made(settings={"evaluate": ["tasks=perplexity", "trials=3"], "train": train})
    cell = cells(results, "SSA")["accuracy"]
    assert (cell.shown, cell.state) == ("unmeasured", "unmeasured")
    assert cell.note.startswith("Not evaluated at scale=smoke. To fill it: python -m experiments ablation_strategies ")
    typed = shlex.split(cell.note.partition("To fill it: ")[2])[4:]
    asked = parse(GridSettings, typed, find_experiment("ablation_strategies").values("smoke"))
    assert asked.tasks() == ["perplexity", "passkey"]
    changed = {"evaluate": ["tasks=perplexity,passkey", "trials=3"]}
    assert asked.model_dump() == results.settings.model_copy(update=changed).model_dump(), "the same but for that"
    large = cells(results, "SSA", "large")
    assert large["loss"].state == large["accuracy"].state == "unmeasured"
    assert large["loss"].note == (
        "Not part of scale=smoke. To fill it: python -m experiments ablation_strategies scale=gpu"
    )


def test_table_of_other_text_is_without_the_paper_and_groups_of_other_scales(made: Made) -> None:
    results = made(settings={"train": ["scale=smoke", "data=pysource"]})
    assert results.is_on_other_text
    assert {row[0].text for row in table(results, []).rows} == set(results.groups)


def test_table_without_any_run(made: Made) -> None:
    columns = ["folder", "experiment", "status", "error", "damage", "commit", "data_hash"]
    empty = replace(made(), frame=pd.DataFrame(columns=columns))
    assert cells(empty, "SSA")["loss"].state == "missing"
    assert "commit -; data -" in table(empty, []).caption


def test_run_that_failed_earlier_is_shown(made: Made) -> None:
    assert FAILED != INTERRUPTED
    results = made({("SSA", 0): {"status": "failed", "error": ""}})
    assert cells(results, "SSA")["loss"].note.startswith("seed 0 failed (failed)")
