"""The page as one file: the same runs and results give the same bytes."""

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
from ssa.files import write_atomic
from ssa.record import runs as run_store
from ssa.report.cells import lines_of
from ssa.report.page.results import Item, items
from ssa.report.page.run_data import POINTS, environments, page_data
from ssa.report.page.settings import ReportSettings


def write(settings: ReportSettings) -> Path:
    """Reads runs and results, and writes ``<to>/index.html``; returns its path.

    Raises:
        UserError: a folder that was named is not there; the source cannot be read; ``to`` cannot be written.
    """
    for field in sorted({"runs", "experiments"} & settings.model_fields_set):
        if not Path(getattr(settings, field)).is_dir():
            raise UserError(f"{field}={getattr(settings, field)}: no such folder")
    found = items(Path(settings.experiments))
    text = page(_load(settings), found, source=settings.source or settings.runs, experiments=settings.experiments)
    path = Path(settings.to) / "index.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    except OSError as error:
        raise UserError(f"to={settings.to}: cannot be written ({error.strerror})") from None
    return path


def page(runs: pd.DataFrame, found: list[Item], *, source: str, experiments: str) -> str:
    """The page's HTML.

    Args:
        runs: of `ssa.record.runs.load`.
        found: the items with results, and those without.
        source, experiments: where both are from, for the reader.
    """
    data = page_data(runs) if len(runs) else {"runs": []}
    concluded = sorted((item for item in found if item.verdicts), key=lambda item: item.scale == "smoke")
    tabled = [item for item in found if item.table]
    pictured = [item for item in found if item.pictures]
    parts = (
        ("verdicts", "Verdicts", found),
        ("tables", "Tables", tabled),
        ("figures", "Figures", pictured),
        ("runs", "Runs", len(runs)),
        ("curves", "Curves", len(runs)),
        ("differences", "Differences of two runs", len(runs)),
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
        items=found,
        concluded=concluded,
        unread=[item for item in found if not item.verdicts],
        tabled=tabled,
        pictured=pictured,
        sections=[(name, title) for name, title, present in parts if present],
        counts={
            "item": len(found),
            "run": len(runs),
            "status": sorted(Counter(map(str, runs["status"])).items()) if len(runs) else [],
            "damaged": sum(bool(run["damage"]) for run in data["runs"]),
        },
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
    """JSON in which no text can end the script element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026"))


def _shown(value: Any) -> Any:
    """A text without characters that HTML cannot have."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return "\n".join(lines_of(value)) if is_text else value


def _text(name: str) -> str:
    return resources.files("ssa.report.page").joinpath(name).read_text(encoding="utf-8")
