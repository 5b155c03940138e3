"""Results of the experiments, from ``<experiment>/results``: conclusions, table and figures of one scale each."""

from __future__ import annotations

import base64
import csv
import json
import re
import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ssa.config import SCALES
from ssa.report.tables import Table

# By the first words of a verdict; color alone must not carry it
MARKS = {"holds": "✓", "does not hold": "✗", "practically equal": "≈", "undecided": "?"}
_PICTURES = {".png": "image/png", ".svg": "image/svg+xml"}
_SVG_SIZE = re.compile(rb'<svg[^>]*?viewBox="[-\d.]+ [-\d.]+ ([\d.]+) ([\d.]+)"')


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI; width and height in CSS pixels."""

    name: str
    uri: str
    width: int
    height: int


@dataclass
class ExperimentResults:
    """Results of one experiment at the largest scale that has any; ``scale`` is None where none has."""

    folder: Path
    scale: str | None
    verdicts: list[dict[str, str]] = field(default_factory=list)  # rows of <scale>_conclusions.csv, the main one first
    table: Table | None = None  # its summary
    pictures: list[Picture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # results that cannot be read

    @property
    def name(self) -> str:
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
    return [
        _read(path)
        for path in sorted(folder.iterdir())
        if (path / "results").is_dir() or (path / "config.yaml").exists()
    ]


def _read(experiment: Path) -> ExperimentResults:
    main = ("conclusions.csv", "summary.json")
    scales = (s for s in reversed(SCALES) if any((experiment / "results" / f"{s}_{name}").exists() for name in main))
    found = ExperimentResults(experiment, next(scales, None))
    files = {path.name: path for path in sorted((experiment / "results").glob(f"{found.scale}_*"))}
    for name, path in files.items():
        try:
            if name == f"{found.scale}_conclusions.csv":
                found.verdicts = _verdicts(path)
            elif name == f"{found.scale}_summary.json":
                found.table = Table.of(json.loads(path.read_text(encoding="utf-8")))
            elif path.suffix in _PICTURES:
                other = path.with_suffix(".svg" if path.suffix == ".png" else ".png")
                if other.name not in files or (path.stat().st_size, name) < (other.stat().st_size, other.name):
                    found.pictures.append(_picture(path, path.stem.removeprefix(f"{found.scale}_")))
        except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
            found.problems.append(f"{name} cannot be read: {error}")
    return found


def _verdicts(path: Path) -> list[dict[str, str]]:
    """With the kind of verdict and a character that stands for it, and numbers rounded for display."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    texts, numbers = ("claim", "verdict", "quantity", "seeds", "expected"), ("mean", "low", "high")
    return [
        {name: row[name] for name in texts}
        | {name: f"{float(row[name]):.4g}" for name in numbers}
        | {"kind": kind, "mark": MARKS[kind]}
        for row in rows
        for kind in [next((kind for kind in MARKS if row["verdict"].startswith(kind)), "undecided")]
    ]


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
    return Picture(name.replace("_", " "), uri, round(width), round(height))
