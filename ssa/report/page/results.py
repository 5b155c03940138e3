"""Results of the experiments, from ``<experiment>/results``: conclusions, table and figures of one scale each."""

from __future__ import annotations

import base64
import csv
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ssa.config import SCALES
from ssa.report.tables import Table

MARKS = {"holds": "✓", "does not hold": "✗", "undecided": "?"}  # color alone must not carry the verdict
_PICTURES = {".png": "image/png", ".svg": "image/svg+xml"}
_SVG_SIZE = re.compile(rb'<svg[^>]*?viewBox="[-\d.]+ [-\d.]+ ([\d.]+) ([\d.]+)"')
_POINT = 96 / 72  # CSS pixels


@dataclass(frozen=True)
class Verdict:
    """One row of ``<scale>_conclusions.csv``; numbers rounded for display."""

    claim: str
    verdict: str
    quantity: str
    mean: str
    low: str
    high: str
    seeds: str
    expected: str

    @property
    def mark(self) -> str:
        """A character that stands for the verdict."""
        return MARKS.get(self.verdict, "?")


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI; width and height in CSS pixels."""

    name: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class ExperimentResults:
    """Results of one experiment at the largest scale that has any; ``scale`` is None where none has.

    Attributes:
        verdicts: its conclusions, the main one first.
        table: its summary.
        problems: results that cannot be read.
    """

    folder: Path
    scale: str | None
    verdicts: list[Verdict] = field(default_factory=list)
    table: Table | None = None
    pictures: list[Picture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @cached_property
    def title(self) -> str:
        """The first heading of the experiment's README, else its name."""
        readme = self.folder / "README.md"
        lines = readme.read_text(encoding="utf-8", errors="replace").splitlines() if readme.is_file() else []
        return next((line[2:].strip() for line in lines if line.startswith("# ")), self.name)


def read_results(folder: Path) -> list[ExperimentResults]:
    """Results of each subfolder with a ``config.yaml`` or a ``results`` folder, by name."""
    if not folder.is_dir():
        return []
    experiments = [
        path for path in sorted(folder.iterdir()) if (path / "results").is_dir() or (path / "config.yaml").exists()
    ]
    return [_read(path) for path in experiments]


def _read(experiment: Path) -> ExperimentResults:
    scale = _largest_scale(experiment)
    files = {path.name: path for path in _files(experiment, scale)} if scale else {}
    verdicts: list[Verdict] = []
    table: Table | None = None
    pictures: list[Picture] = []
    problems: list[str] = []
    for name, path in files.items():
        try:
            if name == f"{scale}_conclusions.csv":
                verdicts = _verdicts(path)
            elif name == f"{scale}_summary.json":
                table = Table.of(json.loads(path.read_text(encoding="utf-8")))
            elif path.suffix in _PICTURES:
                other = path.with_suffix(".svg" if path.suffix == ".png" else ".png")
                if other.name not in files or (path.stat().st_size, name) < (other.stat().st_size, other.name):
                    pictures.append(_picture(path, path.stem.removeprefix(f"{scale}_")))
        except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
            problems.append(f"{name} cannot be read: {error}")
    return ExperimentResults(experiment, scale, verdicts, table, pictures, problems)


def _largest_scale(experiment: Path) -> str | None:
    endings = ("_conclusions.csv", "_summary.json")
    scales = (s for s in reversed(SCALES) if any(path.name.endswith(endings) for path in _files(experiment, s)))
    return next(scales, None)


def _files(experiment: Path, scale: str) -> Iterator[Path]:
    yield from sorted((experiment / "results").glob(f"{scale}_*"))


def _verdicts(path: Path) -> list[Verdict]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = ("mean", "low", "high")
    texts = ("claim", "verdict", "quantity", "seeds", "expected")
    return [
        Verdict(**{name: row[name] for name in texts}, **{name: f"{float(row[name]):.4g}" for name in numbers})
        for row in rows
    ]


def _picture(path: Path, name: str) -> Picture:
    """As a data URI: ids of two SVGs cannot clash, and no script in them can run."""
    data = path.read_bytes()
    if path.suffix == ".png":
        if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
            raise ValueError("not a PNG")
        width, height = struct.unpack(">II", data[16:24])
        width, height = width * 96 / 150, height * 96 / 150  # drawn at 150 dots an inch
    else:
        size = _SVG_SIZE.search(data)
        if not size:
            raise ValueError("an SVG without a viewBox")
        width, height = (float(number) * _POINT for number in size.groups())
    uri = f"data:{_PICTURES[path.suffix]};base64,{base64.b64encode(data).decode()}"
    return Picture(name.replace("_", " "), uri, round(width), round(height))
