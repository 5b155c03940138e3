"""One item being computed: parts that are kept, and what it writes.

Results are ``<scale>_<name>.csv``, ``.png``, ``.svg`` and so on, in the item's ``results`` folder.  A study's parts are
kept under ``<output_dir>/experiments``, so that a killed study goes on where it was, and items share what they have in
common; a part is computed again when its arguments or the code that it rests on change.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import io
import json
import math
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from experiments.conclusion import Conclusion
from experiments.item import BOOKKEEPING, HERE, Item, ItemSettings
from experiments.launch import Run, train
from experiments.processes import context
from ssa import plotting
from ssa.record import environment
from ssa.record.run_files import read_json, write_atomic, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
_LINES_SECONDS = 15.0  # between lines of progress where there is no terminal
Part = tuple[Callable[..., Any], dict[str, Any]]  # a function of a module, and its arguments by name, plain values


class Study:
    """What an item's ``run`` writes to."""

    def __init__(self, item: Item, settings: ItemSettings, console: Console) -> None:
        self.item, self.settings, self.console = item, settings, console
        self.folder = Path(settings.to) if settings.to else self._default_folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.conclusions: list[Conclusion] = []
        self._said = time.perf_counter()  # when a line of progress was printed last
        self.written: list[Path] = []

    @cached_property
    def _default_folder(self) -> Path:
        if self.item.is_as_scaled(self.settings):
            return self.item.folder / "results"
        values = json.dumps(self.settings.model_dump(exclude=BOOKKEEPING), sort_keys=True)
        return self._kept.parent / self.item.name / hashlib.sha256(values.encode()).hexdigest()[:8]

    @property
    def _kept(self) -> Path:
        return Path(self.settings.output_dir) / "experiments" / "parts"

    def compute(self, parts: Sequence[Part]) -> list[Any]:
        """What each function returns of its arguments: kept ones are read, the others computed, with a bar.

        Args:
            parts: functions of a module, so that other processes find them; arguments and results are plain values, as
                JSON has them.
        """
        files = [self._kept / f"{_name(*part)}.json" for part in parts]
        missing = [number for number, file in enumerate(files) if self.settings.rerun or not file.is_file()]
        missing = list({files[number]: number for number in missing}.values())  # equal parts once
        self._kept.mkdir(parents=True, exist_ok=True)

        def keep(number: int, value: Any, seconds: float) -> None:
            function, arguments = parts[number]
            of = {"function": f"{function.__module__}.{function.__qualname__}", "arguments": arguments}
            write_json(files[number], {**of, "seconds": seconds, "value": value})

        if len(parts) > len(missing):
            self.console.print(f"{len(parts) - len(missing)} of {len(parts)} parts are kept from before")
        if missing:
            with self._bar(len(missing)) as advance:
                for number, value, seconds in _computed([(number, parts[number]) for number in missing], self.jobs):
                    keep(number, value, seconds)
                    advance()
        kept = [read_json(file) for file in files]
        self.seconds += math.fsum({file: value["seconds"] for file, value in zip(files, kept, strict=True)}.values())
        return [value["value"] for value in kept]

    def train(self, runs: Sequence[Run]) -> list[Path]:
        """The folders of finished runs, in order; what is not finished is run.

        Raises:
            UserError: overrides are refused, or a run failed.
        """
        return train(runs, jobs=self.jobs, console=self.console, rerun=self.settings.rerun)

    seconds = 0.0  # that all parts took, kept ones too, one after another

    @property
    def jobs(self) -> int:
        """Processes at once."""
        return self.settings.jobs

    def table(self, name: str, rows: Sequence[Row]) -> None:
        """Writes ``<scale>_<name>.csv``; numbers have 6 significant digits."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([[_cell(value) for value in row.values()] for row in rows])
        self._write(f"{name}.csv", text.getvalue())

    def summary(self, title: str, rows: Sequence[Row], notes: str = "") -> None:
        """Writes a table as ``<scale>_<name>.csv`` and for readers as Markdown, and prints it.

        Args:
            title: what it shows; the Markdown's first line.
            rows: as they are to be read; a cell is text or a number.
            notes: units, scale, seeds, what the interval is.
        """
        self.table("summary", rows)
        cells = [[_cell(value) for value in row.values()] for row in rows]
        lines = ["| " + " | ".join(row) + " |" for row in (list(rows[0]), ["---"] * len(rows[0]), *cells)]
        self._write("summary.md", "\n".join([f"**{title}** {notes}".strip(), "", *lines, ""]))
        table = Table(*(Column(name, no_wrap=True) for name in rows[0]), box=box.SIMPLE_HEAD)
        for row in cells:
            table.add_row(*row)
        width = Measurement.get(self.console, self.console.options.update(max_width=1000), table).maximum
        Console(width=max(width, self.console.width)).print(table)  # a narrow terminal wraps it: no number is cut
        self.console.print(notes)

    def text(self, name: str, text: str) -> None:
        """Writes ``<scale>_<name>``, whose name has its ending."""
        self._write(name, text)

    @contextmanager
    def figure(self, name: str, width: float, height: float, caption: str) -> Iterator[Figure]:
        """A figure to draw into, written as ``<scale>_<name>.png`` and ``.svg`` when the block ends.

        Args:
            width, height: in inches.
            caption: what is drawn, in which units, and of how many seeds; goes below.  The scale is added.
        """
        with plotting.figure(width, height) as drawing:
            yield drawing
            text = f"{caption} scale={self.settings.scale}."
            drawing.supxlabel(
                textwrap.fill(text, round(width * 17)), x=0.01, ha="left", fontsize=7.5, color=plotting.INK
            )
            self.written += plotting.save(drawing, self.path(name))

    def conclude(self, conclusion: Conclusion) -> None:
        """Takes down what the item comes to; the first is its main one."""
        self.conclusions.append(conclusion)

    def path(self, name: str) -> Path:
        """Of a file among the results."""
        return self.folder / f"{self.settings.scale}_{name}"

    def finish(self, seconds: float) -> None:
        """Writes the conclusions, and what they were computed with and on."""
        if self.conclusions:
            self.table("conclusions", [conclusion.row() for conclusion in self.conclusions])
        facts = environment.describe().facts
        write_json(
            self.path("study.json"),
            {
                "item": self.item.name,
                "settings": self.settings.model_dump(exclude={"to", "output_dir", "rerun"}),
                "seconds": round(seconds),
                "seconds_of_parts": round(self.seconds),
                "commit": (facts["git"] or {}).get("commit"),
                "python": facts["python"],
                "torch": facts["packages"]["torch"],
                "cpu": facts["machine"]["cpu"],
                "cores": facts["machine"]["cores"],
            },
        )

    def _write(self, name: str, text: str) -> None:
        write_atomic(self.path(name), text)
        self.written.append(self.path(name))

    @contextmanager
    def _bar(self, total: int) -> Iterator[Callable[[], None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=self.console) as progress:
            task = progress.add_task(self.item.name, total=total)
            began = time.perf_counter()

            def advance() -> None:
                progress.advance(task)
                done = progress.tasks[0].completed
                now = time.perf_counter()
                if not self.console.is_terminal and now - self._said > _LINES_SECONDS:
                    self._said = now
                    left = (now - began) / done * (total - done)
                    self.console.print(f"{self.item.name}: {done:.0f} of {total}, about {left:.0f} s left")

            yield advance


def _computed(parts: Sequence[tuple[int, Part]], jobs: int) -> Iterator[tuple[int, Any, float]]:
    """(number, value, seconds) of each, as they come."""
    if jobs == 1 or len(parts) == 1:
        yield from ((number, *_timed(*part)) for number, part in parts)
        return
    with ProcessPoolExecutor(min(jobs, len(parts)), mp_context=context("torch")) as pool:
        futures = {pool.submit(_timed, *part): number for number, part in parts}
        try:
            for future in as_completed(futures):
                yield futures[future], *future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _timed(function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[Any, float]:
    import torch

    torch.set_num_threads(1)  # sums of several threads depend on how many there are
    began = time.perf_counter()
    value = function(**arguments)
    return value, time.perf_counter() - began


def _name(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Of the file that keeps a part: the function, and a hash of its arguments and of the code it rests on."""
    code = [_sources(name) for name in ("ssa.theory", "ssa.temperature", "ssa.model_config", function.__module__)]
    key = json.dumps([function.__qualname__, arguments, code], sort_keys=True)
    return f"{function.__name__}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _sources(module: str) -> str:
    path = Path(str(importlib.import_module(module).__file__))
    files = (
        sorted(path.parent.glob("*.py")) if path.name == "__init__.py" else sorted(path.parent.glob(f"{path.stem}*.py"))
    )
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def references(item: str) -> list[dict[str, str]]:
    """The paper's cells of an item, of its ``reference.csv``."""
    with (HERE / item / "reference.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
