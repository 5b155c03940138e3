"""Report pages of folders made for tests, and what a reader finds on them."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from ssa.report.page.settings import ReportSettings
from ssa.report.page.write import write

CLAIM = {
    "claim": "SSA is better",
    "verdict": "holds",
    "quantity": "a difference",
    "mean": -0.5,
    "low": -0.61234,
    "high": -0.4,
}


class Tags(HTMLParser):
    """Every element with its attributes, and all text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def page(folder: Path, **settings: str) -> str:
    named = {"runs": str(folder / "outputs"), "experiments": str(folder / "experiments"), **settings}
    return write(ReportSettings(to=str(folder / "report"), **named)).read_text(encoding="utf-8")


def data_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    assert not set("<>&") & set(found[1])  # nothing that HTML could take for its own
    data: dict[str, Any] = json.loads(found[1])
    return data


def add_results(folder: Path, name: str, scale: str, **changes: object) -> Path:
    """Adds an experiment with a conclusion; returns the path prefix of its results."""
    results = folder / "experiments" / name / "results"
    results.mkdir(parents=True, exist_ok=True)
    row = {**CLAIM, "seeds": 3, "expected": "lower than 0", "sentence": "", **changes}
    with (results / f"{scale}_conclusions.csv").open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerow(row)
    return results / f"{scale}_"
