"""Results of experiments: claims, table, figures and files of one scale each.

Those of the paper's items are in ``<experiment>/results``; those on other text or settings, and of a user's grids,
below ``<output_dir>/experiments``.
"""

from __future__ import annotations

import base64
import csv
import json
import re
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ssa.config import SCALES
from ssa.paths import EXPERIMENTS, INSTALLED, command
from ssa.report.page.claims import Claim, number, read_claims
from ssa.report.tables import Table
from ssa.yaml_files import read_yaml

_PICTURES = {".png": "image/png", ".svg": "image/svg+xml"}
_SVG_SIZE = re.compile(rb'<svg[^>]*?viewBox="[-\d.]+ [-\d.]+ ([\d.]+) ([\d.]+)"')
_LISTED = re.compile(r"\]\(([^/()]+)/README\.md\)")
# Linked below an experiment's table, by ending of the file
_LINKED = {"summary.csv": "CSV", "summary.tex": "TeX", "summary.json": "JSON", "conclusions.csv": "claims"}


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI; width and height in CSS pixels; ``files``: names of its files, by format."""

    name: str
    uri: str
    width: int
    height: int
    caption: str
    files: dict[str, str]

    @property
    def is_column(self) -> bool:
        """Whether it is drawn for a column of a paper, and shown larger here."""
        return self.width <= 330


@dataclass
class ExperimentResults:
    """Results of one experiment at the largest scale that has any; ``scale`` is None where none has.

    Attributes:
        folder: of the experiment, with its README.
        at: of the files of results.
    """

    folder: Path
    at: Path
    scale: str | None
    claims: list[Claim] = field(default_factory=list)  # the main one first
    table: Table | None = None  # its summary
    pictures: list[Picture] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # results that cannot be read
    files: dict[str, str] = field(default_factory=dict)  # names of files to link, by their word

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def declared(self) -> Path:
        """The folder of its declaration: that of an installed package where there are only results here."""
        installed = EXPERIMENTS / self.name
        here = not INSTALLED or self.at == self.folder or (self.folder / "config.yaml").is_file()
        return self.folder if here or not installed.is_dir() else installed

    @property
    def is_evidence(self) -> bool:
        """Whether it has claims that mean something: ``scale=smoke`` only tests the code."""
        return bool(self.claims) and self.scale != "smoke"

    @property
    def distinct_claims(self) -> list[Claim]:
        """The first of those that rest on the same numbers."""
        return [*{claim.test: claim for claim in reversed(self.claims)}.values()][::-1]

    @property
    def train(self) -> list[str]:
        """The overrides of all runs, of a grid on other text or of a user's; else empty."""
        settings = self.provenance.get("settings")
        found = settings.get("train") if self.at == self.folder and isinstance(settings, dict) else None
        return [str(text) for text in found] if isinstance(found, list) else []

    @property
    def state(self) -> str:
        """Why there is no verdict."""
        if self.scale == "smoke":
            return "no verdict: scale=smoke only tests the code"
        return "no claims" if self.table else "not run"

    @property
    def command(self) -> str:
        """The command that computes it; empty where it is not known, as of a user's grid before version 0.3."""
        of_item = f"{command(f'-m experiments {self.name}')} scale={self.scale or 'laptop'}"
        return str(self.provenance.get("command", of_item if self.at != self.folder else ""))

    @cached_property
    def title(self) -> str:
        """The first heading of the experiment's README, else its name."""
        lines, name = _lines(self.declared / "README.md"), str(self.provenance.get("experiment", self.name))
        return next((line[2:].strip() for line in lines if line.startswith("# ")), name)

    @cached_property
    def purpose(self) -> str:
        """Of its ``config.yaml``, without the name of the item."""
        if self.at == self.folder:
            return f"on {' '.join(self.train)}" if self.train else ""
        try:
            text = str(read_yaml(self.declared / "config.yaml").get("purpose", ""))
        except Exception as error:  # a user's file, shown as it is
            return f"config.yaml cannot be read: {error}"
        return text.partition(": ")[2] or text

    @cached_property
    def references(self) -> list[dict[str, str]]:
        """The paper's known values, from ``reference.csv``."""
        try:
            rows = list(csv.DictReader(_lines(self.declared / "reference.csv")))
            return [row for row in rows if row["value"] not in ("-", None)]
        except (KeyError, csv.Error) as error:
            self.problems.append(f"reference.csv cannot be read: {error}")
            return []

    @property
    def paper(self) -> str:
        """The paper's size for the main claim, or its known values if it has at most two; else empty."""
        if self.claims and self.claims[0].paper is not None:
            return number(self.claims[0].difference_in_paper)
        if len(self.references) > 2:
            return ""
        return "; ".join(f"{row['value']} ({row['method']}, grade {row['grade']})" for row in self.references)

    @property
    def contents(self) -> str:
        """What is folded below the item's row, in words."""
        counts = {"claim": len(self.claims) if self.is_evidence else 0, "figure": len(self.pictures)}
        parts = [f"{n} {word}{'s' if n > 1 else ''}" for word, n in counts.items() if n]
        return ", ".join([*parts, *(["table"] if self.table else []), "command and files"])

    @property
    def minutes(self) -> str:
        """Minutes of computing behind the results, over all processes; empty where it is not recorded."""
        names = ("seconds_of_runs", "seconds_of_cached_jobs")
        found = [self.provenance.get(name) for name in names]
        seconds = sum(value for value in found if isinstance(value, int | float))
        return f"{max(1, round(seconds / 60)):,}" if seconds else ""

    @property
    def machine(self) -> str:
        cpu, cores = (self.provenance.get(name) for name in ("cpu", "cores"))
        return f"{cpu}, {cores} cores" if cpu and cores else ""


def read_results(folder: Path) -> list[ExperimentResults]:
    """Results of each subfolder with a ``config.yaml`` or a ``results`` folder.

    Their order is that of the links in the folder's ``README.md``, the paper's; others follow by name.
    """
    if not folder.is_dir():
        return []
    lines = _lines(folder / "README.md") or (_lines(EXPERIMENTS / "README.md") if INSTALLED else [])
    names = dict.fromkeys(_LISTED.findall("\n".join(lines)))
    listed = {name: place for place, name in enumerate(names)}
    found = [path for path in folder.iterdir() if (path / "results").is_dir() or (path / "config.yaml").exists()]
    found.sort(key=lambda path: (listed.get(path.name, len(listed)), path.name))
    return [_read(path, path / "results") for path in found]


def read_other_results(outputs: Path) -> list[ExperimentResults]:
    """Results on other text or settings, and of a user's grids, by folder."""
    found = {
        path.parent for depth in ("*", "*/*") for path in (outputs / "experiments").glob(f"{depth}/*_summary.json")
    }
    return [_read(path, path) for path in sorted(found)]


def _read(experiment: Path, at: Path) -> ExperimentResults:
    main = ("conclusions.csv", "summary.json")
    scales = (scale for scale in reversed(SCALES) if any((at / f"{scale}_{name}").exists() for name in main))
    found = ExperimentResults(experiment, at, next(scales, None))
    paths = {path.name: path for path in sorted(at.glob(f"{found.scale}_*"))}
    found.files = {word: f"{found.scale}_{end}" for end, word in _LINKED.items() if f"{found.scale}_{end}" in paths}
    for name, path in paths.items():
        try:
            if name == f"{found.scale}_conclusions.csv":
                found.claims = read_claims(path)
            elif name == f"{found.scale}_summary.json":
                found.table = Table.of(json.loads(path.read_text(encoding="utf-8")))
            elif name == f"{found.scale}_provenance.json":
                found.provenance = dict(json.loads(path.read_text(encoding="utf-8")))
            elif path.suffix in _PICTURES:
                other = path.with_suffix(".svg" if path.suffix == ".png" else ".png")
                if other.name not in paths or (path.stat().st_size, name) < (other.stat().st_size, other.name):
                    found.pictures.append(_picture(path, path.stem.removeprefix(f"{found.scale}_")))
        except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
            found.problems.append(f"{name} cannot be read: {error}")
    return found


def _picture(path: Path, name: str) -> Picture:
    """As a data URI: ids of two SVGs cannot clash, and no script in them can run."""
    data = path.read_bytes()
    if path.suffix == ".png":
        if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
            raise ValueError("not a PNG")
        width, height = (pixels * 96 / 150 for pixels in struct.unpack(">II", data[16:24]))  # drawn at 150 dots an inch
    else:
        size = _SVG_SIZE.search(data)
        if not size:
            raise ValueError("an SVG without a viewBox")
        width, height = (float(points) * 96 / 72 for points in size.groups())
    uri = f"data:{_PICTURES[path.suffix]};base64,{base64.b64encode(data).decode()}"
    kinds = [kind for kind in ("pdf", "svg", "png") if path.with_suffix(f".{kind}").is_file()]
    files = {kind.upper(): f"{path.stem}.{kind}" for kind in kinds}
    caption = " ".join(_lines(path.with_suffix(".txt")))
    return Picture(name.replace("_", " "), uri, round(width), round(height), caption, files)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
