"""The report page in one file: the same runs and results give the same bytes."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ssa import paths, statistics
from ssa.errors import UserError
from ssa.files import check_writable, write_atomic, writing
from ssa.record import runs as run_store
from ssa.report import variants
from ssa.report.page.answer import answer, scale_of
from ssa.report.page.claims import best_evidence, number, tally
from ssa.report.page.forest import forest
from ssa.report.page.results import ExperimentResults, read_other_results, read_results
from ssa.report.page.run_data import POINTS, environments, page_data
from ssa.report.page.settings import ReportSettings
from ssa.report.renderings import to_html
from ssa.report.tables import lines_of

PAPER = "https://arxiv.org/abs/2411.12892"
SCRIPTS = ("series.js", "charts.js", "page.js")  # in one script element


def write(settings: ReportSettings) -> Path:
    """Reads runs and results, and writes ``<to>/index.html``; returns its path.

    Raises:
        UserError: a folder does not exist, the source cannot be read, or ``to`` cannot be written.
    """
    for field in sorted({"runs", "experiments"} & settings.model_fields_set):
        if not Path(getattr(settings, field)).is_dir():
            raise UserError(f"{field}={getattr(settings, field)}: no such folder")
    check_writable(Path(settings.to), f"to={settings.to}")
    results, others = read_results(Path(settings.experiments)), read_other_results(Path(settings.runs))
    source = settings.source or settings.runs
    text = page(_load(settings), results, others, source=source, experiments=settings.experiments, to=settings.to)
    path = Path(settings.to) / "index.html"
    with writing(f"to={settings.to}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    return path


def page(
    runs: pd.DataFrame,
    results: list[ExperimentResults],
    others: Sequence[ExperimentResults] = (),
    *,
    source: str,
    experiments: str,
    to: str = ".",
) -> str:
    """The page's HTML, from runs (`ssa.record.runs.load`), results of all experiments, and those on other text.

    ``source`` and ``experiments`` name for the reader where these come from; links to files start in the folder ``to``.
    """
    data = page_data(runs) if len(runs) else {"runs": []}
    claims = [(one.title, claim) for one in results if one.is_evidence for claim in one.distinct_claims]
    plot, one_variant_each = forest(claims), variants.table(runs) if len(runs) else None
    parts = (
        ("items", "Tables and figures", results),
        ("forest", "Against the paper's size", plot),
        ("others", "Other text, own grids", others),
        ("runs", "Runs", len(runs)),
        ("seeds", "Seeds averaged", one_variant_each),
        ("curves", "Curves", len(runs)),
        ("all", "All runs", len(runs)),
        ("differences", "Differences between two runs", len(runs)),
        ("environments", "Environments", len(runs)),
    )
    environment = Environment(
        loader=PackageLoader("ssa.report.page", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.j2").render(
        html=to_html,
        shown=number,
        link=partial(_link, to),
        command=paths.command,
        install=paths.install,
        paper=PAPER,
        results=results,
        others=others,
        answer=answer([claim for _, claim in claims]),
        best=best_evidence([claim for _, claim in claims]),
        tally=tally(claim for _, claim in claims),
        scale=scale_of(results),
        forest=plot,
        corrected=statistics.has_intervals(),
        sections=[(name, title) for name, title, present in parts if present],
        counts={
            "experiment": len(results),
            "other": len(others),
            "run": len(runs),
            "status": sorted(Counter(map(str, runs["status"])).items()) if len(runs) else [],
            "damaged": sum(bool(run["damage"]) for run in data["runs"]),
        },
        variants=one_variant_each,
        source=source,
        experiments=experiments,
        points=POINTS,
        environments=environments(runs),
        data=_script_json(data),
        css=Markup(_text("page.css")),
        js=Markup("\n".join(map(_text, SCRIPTS))),
    )


def _link(to: str, path: Path) -> str:
    """Address of a file, from the page."""
    return quote(Path(os.path.relpath(path, to)).as_posix())


def _load(settings: ReportSettings) -> pd.DataFrame:
    if settings.source is None and not Path(settings.runs).is_dir():
        return pd.DataFrame()  # the default folder, before the first run
    return run_store.load(settings.runs, source=settings.source)


def _script_json(value: Any) -> Markup:
    """JSON that cannot end the script element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026"))


def _shown(value: Any) -> Any:
    """Replace characters that HTML does not allow."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return "\n".join(lines_of(value)) if is_text else value


def _text(name: str) -> str:
    return resources.files("ssa.report.page").joinpath(name).read_text(encoding="utf-8")
