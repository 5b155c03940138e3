"""Tables on a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column
from rich.table import Table as Printed
from rich.text import Text

from ssa.report.tables import Table


def show(table: Table, console: Console) -> None:
    """Print a table, its footnotes and its caption; on a narrow terminal lines wrap, but no number is cut."""
    marks = table.marks()
    printed = Printed(*(Column(name, no_wrap=True) for name in table.columns), box=box.SIMPLE_HEAD)
    for row in table.rows:
        texts = [f"{cell.shown} [{marks[cell.note]}]" if cell.note else cell.shown for cell in row]
        printed.add_row(*map(Text, texts))  # brackets are not Rich markup
    width = Measurement.get(console, console.options.update(max_width=1000), printed).maximum
    Console(width=max(width, console.width)).print(printed)
    for note, mark in marks.items():
        console.print(f"[{mark}] {note}", markup=False)
    console.print(table.caption, markup=False)
