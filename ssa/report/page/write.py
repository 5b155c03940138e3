"""The report page in one file: the same runs and results give the same bytes."""

from __future__ import annotations

import json
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ssa.errors import UserError
from ssa.files import check_writable, write_atomic, writing
from ssa.record import runs as run_store
from ssa.report import variants
from ssa.report.page.results import ExperimentResults, read_results
from ssa.report.page.run_data import POINTS, environments, page_data
from ssa.report.page.settings import ReportSettings
from ssa.report.renderings import to_html
from ssa.report.tables import lines_of


def write(settings: ReportSettings) -> Path:
    """Reads runs and results, and writes ``<to>/index.html``; returns its path.

    Raises:
        UserError: a folder does not exist, the source cannot be read, or ``to`` cannot be written.
    """
    for field in sorted({"runs", "experiments"} & settings.model_fields_set):
        if not Path(getattr(settings, field)).is_dir():
            raise UserError(f"{field}={getattr(settings, field)}: no such folder")
    check_writable(Path(settings.to), f"to={settings.to}")
    results = read_results(Path(settings.experiments))
    text = page(_load(settings), results, source=settings.source or settings.runs, experiments=settings.experiments)
    path = Path(settings.to) / "index.html"
    with writing(f"to={settings.to}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    return path


def page(runs: pd.DataFrame, results: list[ExperimentResults], *, source: str, experiments: str) -> str:
    """The page's HTML, from runs (`ssa.record.runs.load`) and results of all experiments.

    ``source`` and ``experiments`` name for the reader where these come from.
    """
    data = page_data(runs) if len(runs) else {"runs": []}
    concluded = sorted((one for one in results if one.verdicts), key=lambda one: one.scale == "smoke")
    tabled = [one for one in results if one.table]
    pictured = [one for one in results if one.pictures]
    parts = (
        ("verdicts", "Verdicts", results),
        ("tables", "Tables", tabled),
        ("figures", "Figures", pictured),
        ("runs", "Runs", len(runs)),
        ("curves", "Curves", len(runs)),
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
        results=results,
        concluded=concluded,
        unfinished=[one for one in results if not one.verdicts],
        tabled=tabled,
        pictured=pictured,
        sections=[(name, title) for name, title, present in parts if present],
        counts={
            "experiment": len(results),
            "run": len(runs),
            "status": sorted(Counter(map(str, runs["status"])).items()) if len(runs) else [],
            "damaged": sum(bool(run["damage"]) for run in data["runs"]),
        },
        variants=variants.table(runs) if len(runs) else None,
        source=source,
        experiments=experiments,
        points=POINTS,
        environments=environments(runs),
        data=_script_json(data),
        css=Markup(_text("page.css")),
        js=Markup(_text("page.js")),
    )


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
