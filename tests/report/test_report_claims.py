"""Claims on the report page: the answer, verdicts after correction, the forest plot."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from report_pages import Tags, add_results, page

from ssa import statistics
from ssa.report.page.claims import Claim, read_claims, seeds_to_decide
from ssa.report.page.forest import forest
from ssa.report.page.results import read_results

stats = pytest.importorskip("scipy.stats")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One experiment, whose claim holds at ``scale=laptop``, and no runs."""
    (tmp_path / "outputs").mkdir()
    add_results(tmp_path, "demo", "laptop")
    return tmp_path


def test_items_are_in_the_papers_order(folder: Path) -> None:
    for name in ("aaa", "bbb", "zzz"):
        add_results(folder, name, "laptop")
    (folder / "experiments" / "README.md").write_text("[Z](zzz/README.md), [D](demo/README.md), [Z](zzz/README.md)\n")
    results = read_results(folder / "experiments")
    assert [one.name for one in results] == ["zzz", "demo", "aaa", "bbb"]


def test_the_page_begins_with_answer_tally_and_scale(folder: Path) -> None:
    sized = {"paper": 0.9, "p as claimed": 0.001, "seeds": 7, "verdict": "holds, smaller than the paper's"}
    add_results(folder, "grid", "overnight", **sized, claim="of the most seeds")
    add_results(folder, "other", "laptop", **{**sized, "seeds": 3}, claim="of few seeds")
    add_results(folder, "quick", "smoke", verdict="does not hold")
    (folder / "experiments" / "later").mkdir()
    (folder / "experiments" / "later" / "config.yaml").write_text("purpose: 'table 9: what is to come'\n")
    head = Tags(page(folder).partition("<main>")[0]).text
    head = " ".join(head.split())
    assert "None of the 2 comparisons for which the paper gives a size reaches it here." in head
    assert "Holds, smaller than the paper's: 2." in head
    assert "with the most seeds: Of the most seeds. ✓ holds, smaller than the paper's −0.5 [−0.612, −0.4], 7" in head
    assert "the paper’s size: −0.9" in head
    assert "✓ 3 holds" in head
    assert "✗" not in head, "smoke tests the code alone"
    assert "2 items at scale=laptop (small models, minutes on two cores); 1 item at scale=overnight" in head
    assert "No result at scale=gpu" in head
    assert "Not run: later, quick." in head
    assert "what is to come" in Tags(page(folder)).text


def test_seeds_that_would_decide_a_claim(folder: Path) -> None:
    """The power of the t-test if mean and spread are those seen."""
    path = Path(f"{add_results(folder, 'one', 'laptop', mean=-0.5, low=-1.1, high=0.1, seeds=5)}conclusions.csv")
    (claim,) = read_claims(path)
    sd = 0.6 / stats.t.ppf(0.975, 4) * math.sqrt(5)

    def power(n: int, level: float) -> float:
        return float(stats.nct.sf(stats.t.isf(level, n - 1), n - 1, 0.5 / sd * math.sqrt(n)))

    for n_claims in (1, 4):
        n = seeds_to_decide(claim, n_claims)
        assert n is not None
        assert power(n - 1, 0.025 / n_claims) < 0.8 <= power(n, 0.025 / n_claims)
    (exact,) = read_claims(
        Path(f"{add_results(folder, 'two', 'laptop', mean=0, low=-1, high=1, seeds=5)}conclusions.csv")
    )
    assert seeds_to_decide(exact, 1) is None


def test_a_verdict_is_corrected_for_the_claims_of_its_experiment(folder: Path) -> None:
    """Of the interval [-0.9, -0.1] over 5 seeds p is 0.027: it survives alone, but not beside a second claim."""
    path = Path(f"{add_results(folder, 'one', 'laptop', mean=-0.5, low=-0.9, high=-0.1, seeds=5)}conclusions.csv")
    (alone,) = read_claims(path)
    assert (alone.verdict, alone.alone) == ("holds", "")
    t, df = 0.5 / (0.4 / stats.t.ppf(0.975, 4)), 4
    assert alone.p == pytest.approx(2 * stats.t.sf(t, df))
    row, tally = path.read_text().splitlines()[1], Tags(page(folder)).text.partition("Scale of")[0]
    path.write_text(path.read_text() + row.replace("SSA is better", "So it is in other words") + "\n")
    assert [one.verdict for one in read_claims(path)] == ["holds"] * 2, "one test of two claims"
    assert Tags(page(folder)).text.partition("Scale of")[0] == tally
    path.write_text(path.read_text() + row.replace("a difference", "another difference") + "\n")
    claims = read_claims(path)
    assert [(one.verdict, one.alone) for one in claims] == [("undecided", "holds")] * 3
    assert claims[0].p == pytest.approx(4 * stats.t.sf(t, df))
    text = Tags(page(folder)).text
    assert "holds by its own interval" in text


def test_the_interval_of_a_ratio_is_one_of_logarithms(folder: Path) -> None:
    low, high = math.exp(-0.9), math.exp(-0.1)
    values = {"mean": math.exp(-0.5), "low": low, "high": high, "seeds": 5, "expected": "lower than 1"}
    (claim,) = read_claims(Path(f"{add_results(folder, 'ratio', 'laptop', **values)}conclusions.csv"))
    assert claim.p == pytest.approx(2 * stats.t.sf(0.5 / (0.4 / stats.t.ppf(0.975, 4)), 4))


def test_without_scipy_the_page_says_that_nothing_is_corrected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corrected = "after Holm’s correction"
    assert corrected in page(folder)
    monkeypatch.setattr(statistics, "has_intervals", lambda: False)
    text = page(folder)
    assert corrected not in text
    assert "not corrected for the number of claims" in text
    (claim,) = read_claims(folder / "experiments" / "demo" / "results" / "laptop_conclusions.csv")
    assert (claim.verdict, claim.p) == ("holds", None)


def test_grids_are_corrected_where_they_are_made(folder: Path) -> None:
    start = add_results(folder, "grid", "laptop", **{"p as claimed": 0.41, "verdict": "undecided, 3 more seeds"})
    (claim,) = read_claims(Path(f"{start}conclusions.csv"))
    assert (claim.verdict, claim.p) == ("undecided, 3 more seeds", 0.41)


def test_the_forest_plot_has_one_unit_and_all_its_claims() -> None:
    def claim(group: str, metric: str, mean: float, paper: float | None) -> Claim:
        return Claim(
            f"in {group}, SSA has a lower {metric} than vanilla", "undecided", f"difference in {metric}, SSA - vanilla",
            mean, mean - 0.1, mean + 0.1, "3", "lower than 0", paper, None,
        )  # fmt: skip

    found = forest(
        [
            ("Table 3", claim("GPT-2, fine-tuning", "validation loss", -0.2, 0.3)),
            ("Table 3", claim("Pythia", "validation loss", math.nan, 0.1)),
            ("Table 3", claim("Llama", "validation loss", 0.1, None)),
            ("Table 4", claim("Pythia", "accuracy", 0.1, 0.2)),
        ]
    )
    assert found is not None
    assert [line.group for line in found.lines] == ["GPT-2, fine-tuning", "Pythia"]
    first, second = found.lines
    assert first.low is not None
    assert first.mean is not None
    assert first.paper is not None
    assert 0 <= first.low < first.mean < 50 < 100
    assert first.paper < first.mean, "the paper's size has the sign of the claim"
    assert (second.mean, second.low) == (None, None)
    assert (50.0, "0") in found.ticks
    assert forest([("Table 3", claim("Llama", "validation loss", 0.1, None))]) is None
