"""What a table holds: cells that know their runs, and footnotes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

State = Literal["text", "value", "reference", "none", "missing", "failed", "damaged", "unmeasured"]
STATES: tuple[State, ...] = get_args(State)
# No page can show them: controls, halves of surrogate pairs, and what Unicode assigns to no character.
NO_CHARACTERS = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
FORBIDDEN = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{NO_CHARACTERS}]")
INCOMPLETE: tuple[State, ...] = ("missing", "failed", "damaged", "unmeasured")


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        text: as plain text, of any characters; a line break where it has one.
        state: ``text`` a name or sentence, ``value`` measured by us, ``reference`` of the paper, ``none`` nothing to be
            had, ``missing`` not run yet, ``failed`` its run failed, ``damaged`` its files are not as they were,
            ``unmeasured`` run, but without this quantity.
        runs: ids of the runs behind it.
        note: a footnote; cells with the same one share its mark.

    Raises:
        ValueError: another state.
    """

    text: str
    state: State = "text"
    runs: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"cell {self.text!r}: state {self.state!r} is none of {', '.join(STATES)}")

    @property
    def shown(self) -> str:
        """The text, and what it lacks in words where it does not say so: no rendering tells states by color alone."""
        if self.state == "none":
            return self.text or "–"
        if self.state not in INCOMPLETE or self.state in self.text.lower():
            return self.text
        return f"{self.text} ({self.state})" if self.text else self.state


@dataclass(frozen=True)
class Contents:
    """Rows of cells under one row of column names, which may be empty.

    Args:
        title: a few words.
        caption: what a reader must know: scale, seeds, commit, data.
        columns: their names.
        rows: a cell for each column.

    Raises:
        ValueError: no columns, or a row with more or fewer cells.
    """

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError(f"table {self.title!r}: no columns")
        for number, row in enumerate(self.rows, 1):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: row {number} has {len(row)} cells for {len(self.columns)} columns"
                )

    def is_text(self, column: int) -> bool:
        """Whether a column holds text but no values, and is left-aligned; others hold numbers."""
        states = {row[column].state for row in self.rows}
        return not states or ("text" in states and not states & {"value", "reference"})

    def marks(self) -> dict[str, str]:
        """Each footnote's letters, in the order of the cells: a to z, aa, ab, ..."""
        notes = dict.fromkeys(cell.note for row in self.rows for cell in row if cell.note)
        return {note: _letters(number) for number, note in enumerate(notes)}

    def heading(self) -> tuple[str, str]:
        """Title as a sentence, and caption."""
        return (self.title if self.title.endswith((".", "?", "!")) else f"{self.title}."), self.caption


def lines_of(text: str) -> list[str]:
    """A text's lines, without characters that no page can show."""
    return [FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", line) for line in text.splitlines()]


def _letters(number: int) -> str:
    above, letter = divmod(number, 26)
    return (_letters(above - 1) if above else "") + chr(ord("a") + letter)
