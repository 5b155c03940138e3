"""What the items came to, read from ``<item>/results``: conclusions, tables and figures of one scale each."""

from __future__ import annotations

import base64
import csv
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ssa.config import SCALES
from ssa.report.tables import Table

MARKS = {"holds": "✓", "does not hold": "✗", "undecided": "?"}  # a verdict is not told by color alone
_PICTURES = {".png": "image/png", ".svg": "image/svg+xml"}
_SVG_SIZE = re.compile(rb'<svg[^>]*?viewBox="[-\d.]+ [-\d.]+ ([\d.]+) ([\d.]+)"')
_POINT = 96 / 72  # CSS pixels


@dataclass(frozen=True)
class Verdict:
    """One row of ``<scale>_conclusions.csv``; numbers as they are to be read."""

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
        """A character for the verdict."""
        return MARKS.get(self.verdict, "?")


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI; width and height in CSS pixels."""

    name: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Item:
    """A folder with results, read at the largest scale that it has; ``scale`` is None where there is nothing yet."""

    folder: Path
    scale: str | None

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.name

    @cached_property
    def title(self) -> str:
        """The first heading of its README, else its name."""
        readme = self.folder / "README.md"
        lines = readme.read_text(encoding="utf-8", errors="replace").splitlines() if readme.is_file() else []
        return next((line[2:].strip() for line in lines if line.startswith("# ")), self.name)

    @property
    def verdicts(self) -> list[Verdict]:
        """Its conclusions, the main one first."""
        return self._read[0]

    @property
    def table(self) -> Table | None:
        """Its summary."""
        return self._read[1]

    @property
    def pictures(self) -> list[Picture]:
        """Its figures."""
        return self._read[2]

    @property
    def problems(self) -> list[str]:
        """What of its results cannot be read."""
        return self._read[3]

    @cached_property
    def _read(self) -> tuple[list[Verdict], Table | None, list[Picture], list[str]]:
        verdicts: list[Verdict] = []
        table: Table | None = None
        pictures: list[Picture] = []
        problems: list[str] = []
        found = {path.name: path for path in _results(self.folder, self.scale)} if self.scale else {}
        start = f"{self.scale}_"
        for name, path in found.items():
            try:
                if name == f"{start}conclusions.csv":
                    verdicts = _verdicts(path)
                elif name == f"{start}summary.json":
                    table = Table.of(json.loads(path.read_text(encoding="utf-8")))
                elif path.suffix in _PICTURES:
                    other = path.with_suffix(".svg" if path.suffix == ".png" else ".png")
                    if other.name not in found or (path.stat().st_size, name) < (other.stat().st_size, other.name):
                        pictures.append(_picture(path, path.stem.removeprefix(start)))
            except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error) as error:
                problems.append(f"{name} cannot be read: {error}")
        return verdicts, table, pictures, problems


def items(folder: Path) -> list[Item]:
    """The items below a folder, by name: subfolders with a ``config.yaml`` or results."""
    if not folder.is_dir():
        return []
    found = [
        path for path in sorted(folder.iterdir()) if (path / "results").is_dir() or (path / "config.yaml").exists()
    ]
    return [Item(path, _largest_scale(path)) for path in found]


def _largest_scale(item: Path) -> str | None:
    endings = ("_conclusions.csv", "_summary.json")
    return next((s for s in reversed(SCALES) if any(path.name.endswith(endings) for path in _results(item, s))), None)


def _results(item: Path, scale: str) -> Iterator[Path]:
    yield from sorted((item / "results").glob(f"{scale}_*"))


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
    """Whole in itself: ids of one SVG cannot meet those of another, and nothing in it can run."""
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
