"""docs/evidence.md is what the committed results say."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import pytest

from experiments.engine.evidence import Evidence, EvidenceSettings, page, run
from ssa.errors import UserError
from ssa.paths import EXPERIMENTS, ROOT

COMMITTED = ROOT / "docs" / "evidence.md"


def test_the_committed_page_is_current() -> None:
    assert COMMITTED.read_text() == page(Evidence()), "python -m experiments evidence writes it"
    assert (ROOT / "docs" / "evidence_forest.svg").is_file()


def test_every_experiment_is_on_it() -> None:
    text = COMMITTED.read_text()
    for path in EXPERIMENTS.glob("*/config.yaml"):
        assert f"../experiments/{path.parent.name}/README.md" in text


def test_differences_are_those_of_the_runs() -> None:
    """Mean and interval of the paired differences, from the table of runs."""
    from scipy import stats

    one = next(one for one in Evidence().differences if one.scale == "overnight" and one.group == "Pythia")
    with (EXPERIMENTS / one.experiment / "results" / "overnight_runs.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["group"] == one.group]
    losses = {(row["row"], row["seed"]): float(row["validation loss"]) for row in rows if row["validation loss"] != "-"}
    row = next(name for name, _ in losses if name.endswith("(SSA)"))
    seeds = [seed for name, seed in losses if name == row]
    differences = [losses[row, seed] - losses["vanilla", seed] for seed in seeds]
    assert one.seeds == len(differences) == 12
    mean = sum(differences) / len(differences)
    half = stats.t.ppf(0.975, 11) * stats.sem(differences)
    for found, expected in zip((one.mean, one.low, one.high), (mean, mean - half, mean + half), strict=True):
        assert math.isclose(found, expected, rel_tol=2e-3)


def test_claims_that_rest_on_the_same_runs_count_once() -> None:
    evidence = Evidence()
    counted = [
        claim
        for kind in ("holds", "does not hold", "practically equal", "undecided", "unfinished")
        for _, claim in evidence.claims(kind)
    ]
    assert len(counted) == evidence.n_claims(evidence.decisive)
    every = [claim for result in evidence.decisive for claim in result.claims]
    assert len(counted) < len(every)


def test_the_command_writes_page_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(EvidenceSettings(to=str(tmp_path / "new")))
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        "evidence.md",
        "evidence_forest.png",
        "evidence_forest.svg",
    }
    assert (tmp_path / "new" / "evidence.md").read_text() == COMMITTED.read_text()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match=re.escape(f"to={file}")):
        run(EvidenceSettings(to=str(file)))
