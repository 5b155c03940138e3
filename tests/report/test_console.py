"""Tables on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ssa.report.console import show
from ssa.report.tables import Table, TableCell

TABLE = Table(
    "Losses",
    "In nats.",
    ("variant", "validation loss", "difference to vanilla"),
    (
        (TableCell("vanilla"), TableCell("4.1716 [4.1601, 4.1831]"), TableCell("baseline", "none")),
        (TableCell("ssa-query"), TableCell("4.1692 [4.1590, 4.1794]", note="At 2 seeds."), TableCell("-0.0024")),
    ),
)


@pytest.mark.parametrize(("terminal", "width"), [(True, 100), (True, 60), (False, 60)])
def test_a_table_fits_the_terminal_and_no_number_is_cut(terminal: bool, width: int) -> None:
    file = io.StringIO()
    show(TABLE, Console(file=file, width=width, force_terminal=terminal, color_system=None, soft_wrap=True))
    printed = file.getvalue()
    for row in TABLE.rows:
        assert all(cell.text in printed for cell in row)
    is_beside = any("vanilla" in line and "4.1716 [4.1601, 4.1831]" in line for line in printed.splitlines())
    assert is_beside == (not terminal or width == 100)
    assert "[a] At 2 seeds.\nIn nats.\n" in printed
    if terminal:
        assert max(len(line) for line in printed.splitlines()) <= width
