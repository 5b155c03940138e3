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
    """Print a table, its footnotes and its caption; on a terminal that is too narrow, a line for each cell of a row."""
    marks = table.marks()
    rows = [[f"{cell.shown} [{marks[cell.note]}]" if cell.note else cell.shown for cell in row] for row in table.rows]
    printed = Printed(*(Column(name, no_wrap=True) for name in table.columns), box=box.SIMPLE_HEAD)
    for texts in rows:
        printed.add_row(*map(Text, texts))  # brackets are not Rich markup
    width = Measurement.get(console, console.options.update(max_width=1000), printed).maximum
    if console.is_terminal and width > console.width:
        indent = max(map(len, table.columns))
        for first, *others in rows:
            lines = (f"  {name:<{indent}}  {text}" for name, text in zip(table.columns[1:], others, strict=True))
            console.print("\n".join([first, *lines]), markup=False)
    else:
        Console(width=max(width, console.width), file=console.file).print(printed)
    for note, mark in marks.items():
        console.print(f"[{mark}] {note}", markup=False)
    console.print(table.caption, markup=False)
