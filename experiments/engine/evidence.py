"""The committed results of all experiments on one page: ``python -m experiments evidence`` writes docs/evidence.md.

The page is a template with text, `evidence.md.j2`; every number in it is read from ``results/`` of the experiments.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jinja2
from pydantic import Field

from experiments.engine.experiment import Experiment, all_experiments
from ssa.config import SCALES, Section
from ssa.files import check_writable, expanded, parse_json, write_atomic, writing
from ssa.report.page.claims import MARKS, Claim, number, read_claims, seeds_to_decide, tally
from ssa.viz import plot_style

NAME = "evidence"
PURPOSE = "the committed results of all experiments as one page of Markdown, with a forest plot"
# Rows of the grids that are SSA as published, by the names they have there, against vanilla
_SSA = ("SSA", "query and value: both (SSA)", "query and value (SSA)", "shared, per head (SSA)", "both (SSA)")
_METRIC = "validation loss"
_VERBS = {  # of one claim, and of several
    "holds": ("holds", "hold"),
    "does not hold": ("does not hold", "do not hold"),
    "practically equal": ("is practically equal", "are practically equal"),
    "undecided": ("is undecided", "are undecided"),
    "unfinished": ("is unfinished", "are unfinished"),
}
_FIGURE = "evidence_forest"


class EvidenceSettings(Section):
    """Command-line settings of ``evidence``."""

    to: Annotated[str, Field(min_length=1)] = Field("docs", description="folder for evidence.md and its figure")


class Difference(NamedTuple):
    """SSA - vanilla in a group of runs: mean over pairs of seeds with its 95% interval, in nats per token."""

    experiment: str
    scale: str
    group: str
    seeds: int
    mean: float
    low: float
    high: float
    paper: float  # the paper's difference; nan where no value is known

    @property
    def shown(self) -> str:
        return f"{number(self.mean)} [{number(self.low)}, {number(self.high)}]"


class Result(NamedTuple):
    """The committed results of an experiment at its largest scale; without any, ``scale`` is empty."""

    experiment: Experiment
    title: str
    scale: str
    claims: Sequence[Claim]
    facts: dict[str, Any]
    runs: frozenset[str] = frozenset()  # of a grid, finished

    @property
    def n_runs(self) -> int:
        return len(self.runs)

    @property
    def link(self) -> str:
        return f"[{self.title}](../experiments/{self.experiment.name}/README.md)"

    @property
    def is_grid(self) -> bool:
        return self.experiment.grid is not None

    @property
    def hours(self) -> float:
        """Of one process."""
        return float(self.facts.get("seconds_of_runs", 0) + self.facts.get("seconds_of_cached_jobs", 0)) / 3600

    @property
    def seeds(self) -> str:
        return str(self.facts.get("settings", {}).get("seeds", ""))

    @property
    def processors(self) -> str:
        """Those that trained; of cached jobs, the one that made the table."""
        machines = self.facts.get("machines_of_runs") or [self.facts.get("cpu", "")]
        return ", ".join(dict.fromkeys(str(machine).split(",")[0].removesuffix(" Processor") for machine in machines))


class Evidence:
    """What the template reads."""

    def __init__(self) -> None:
        self.results = [_result(experiment) for experiment in all_experiments()]

    @property
    def done(self) -> list[Result]:
        return [result for result in self.results if result.scale]

    @property
    def not_run(self) -> list[Result]:
        return [result for result in self.results if not result.scale]

    @property
    def first_looks(self) -> list[Result]:
        """Grids with a few seeds of short runs, from before their design for ``scale=overnight``."""
        return [result for result in self.done if result.is_grid and result.scale != "overnight"]

    @property
    def decisive(self) -> list[Result]:
        return [result for result in self.done if result not in self.first_looks]

    def tally(self, results: Sequence[Result]) -> str:
        """Such as "3 hold ✓, 1 is undecided ?"."""
        counts = tally(claim for _, claim in _distinct(results))
        return ", ".join(f"{count} {_VERBS[kind][count > 1]} {mark}" for kind, mark, count in counts)

    def n_claims(self, results: Sequence[Result]) -> int:
        return len(_distinct(results))

    def detail(self, result: Result, claim: Claim) -> str:
        """Of a claim that holds, how large it is; of one that is undecided, what would settle it."""
        words = [word for word in claim.verdict.split(", ") if word not in ("holds", "undecided")]
        if claim.kind != "undecided":
            return ", ".join(words) or "–"
        seeds = next((int(word.split()[0].replace(",", "")) for word in words if word.endswith("more seeds")), 0)
        if not seeds:
            needed = seeds_to_decide(claim, len({other.test for other in result.claims}))
            seeds = 0 if needed is None else max(0, needed - int(claim.seeds))
            words.append(f"{seeds:,} more seeds" if seeds else "no practical number of seeds")
        if seeds:
            words.append(f"{number(float(f'{seeds * result.hours / int(result.seeds):.2g}'), 6)} h")
        if claim.alone:
            words.append(f"{claim.alone} without Holm's correction")
        return ", ".join(words)

    def claims(self, kind: str) -> list[tuple[Result, Claim]]:
        """Of the decisive results."""
        return [(result, claim) for result, claim in _distinct(self.decisive) if claim.kind == kind]

    @cached_property
    def differences(self) -> list[Difference]:
        """SSA - vanilla in all groups; runs that several grids share count once, and so do those repeated elsewhere."""
        found: dict[object, Difference] = {}
        for result in self.done:
            for one in _differences(result):
                same = (one.scale, one.seeds, one.shown)  # groups may have other names
                if same not in found or math.isnan(found[same].paper):
                    found[same] = one
        order: list[str] = list(SCALES)
        return sorted(found.values(), key=lambda one: (-order.index(one.scale), one.experiment, one.group))

    @property
    def n_runs(self) -> int:
        """Of all grids, which share some."""
        return len(frozenset().union(*(result.runs for result in self.done)))


def _distinct(results: Sequence[Result]) -> list[tuple[Result, Claim]]:
    """Claims with their results; of several that rest on the same runs, or on repetitions of them, the first."""
    found: dict[object, tuple[Result, Claim]] = {}
    for result in results:
        for claim in result.claims:
            same = (claim.ours, claim.seeds)  # another machine differs in later digits
            found.setdefault(claim.claim if math.isnan(claim.mean) else same, (result, claim))
    return list(found.values())


def run(settings: EvidenceSettings) -> None:
    """Write the page and its figure.

    Raises:
        UserError: the folder cannot be written.
    """
    folder, evidence = expanded(settings.to), Evidence()
    check_writable(folder, f"to={settings.to}")
    with writing(f"to={settings.to}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "evidence.md", page(evidence))
        with plot_style.figure(plot_style.PAGE, 0.7 + 0.23 * len(evidence.differences)) as figure:
            _draw(figure, evidence.differences)
            for kind in ("png", "svg"):
                plot_style.write(figure, folder / f"{_FIGURE}.{kind}")
    print(folder / "evidence.md")


def page(evidence: Evidence) -> str:
    """The page, as Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("evidence.md.j2").render(
        evidence=evidence, marks=MARKS, figure=_FIGURE, number=number
    )


def _result(experiment: Experiment) -> Result:
    title = (experiment.folder / "README.md").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    scales = (scale for scale in reversed(SCALES) if scale != "smoke")
    results = experiment.folder / "results"
    scale = next((scale for scale in scales if (results / f"{scale}_conclusions.csv").is_file()), "")
    if not scale:
        return Result(experiment, title, "", [], {})
    path = results / f"{scale}_provenance.json"
    facts = parse_json(path.read_text(encoding="utf-8"), str(path))
    runs = _finished(results / f"{scale}_runs.csv") if experiment.grid is not None else frozenset[str]()
    return Result(experiment, title, scale, read_claims(results / f"{scale}_conclusions.csv"), facts, runs)


def _differences(result: Result) -> Iterator[Difference]:
    path = result.experiment.folder / "results" / f"{result.scale}_statistics.csv"
    if not result.is_grid or not path.is_file():
        return
    papers = {claim.claim: claim.difference_in_paper for claim in result.claims}
    for row in _rows(path):
        if row["row"] not in _SSA or row["metric"] != _METRIC or int(row["difference n"]) < 2:
            continue
        mean, low, high = (float(row[f"difference {name}"]) for name in ("mean", "low", "high"))
        claim = f"in {row['group']}, {row['row']} has a lower {_METRIC} than vanilla"
        paper = papers.get(claim, math.nan)
        seeds, group = int(row["difference n"]), row["group"]
        yield Difference(result.experiment.name, result.scale, group, seeds, mean, low, high, paper)


def _finished(path: Path) -> frozenset[str]:
    return frozenset(row["run"] for row in _rows(path) if row[_METRIC] != "-")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _draw(figure: Any, differences: Sequence[Difference]) -> None:
    """One line for each group; an axis that is logarithmic away from 0, as seeds differ more from scratch."""
    axes = figure.subplots()
    axes.axvline(0, color=plot_style.GRAY, linewidth=0.8)
    for place, one in enumerate(differences):
        bars = [[one.mean - one.low], [one.high - one.mean]]
        filled = "full" if one.scale == "overnight" else "none"
        axes.errorbar(
            [one.mean],
            [place],
            xerr=bars,
            fmt="o",
            color=plot_style.INK,
            markersize=4,
            elinewidth=1.2,
            fillstyle=filled,
        )
        if math.isfinite(one.paper):
            axes.plot([one.paper], [place], "D", color=plot_style.GRAY, markersize=4)
    labels = [f"{one.group} ({one.experiment}, {one.scale}, {one.seeds} seeds)" for one in differences]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xticks([-0.1, -0.01, 0, 0.01, 0.1], ["-0.1", "-0.01", "0", "0.01", "0.1"])
    axes.set_xlabel(f"SSA - vanilla, {_METRIC}, nats per token")
