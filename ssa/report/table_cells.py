"""Cells, footnotes and column alignment of tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

State = Literal["text", "value", "reference", "none", "missing", "failed", "damaged", "unmeasured"]
STATES: tuple[State, ...] = get_args(State)
# Not displayable: control characters, surrogates and noncharacters.
NONCHARACTERS = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
FORBIDDEN = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{NONCHARACTERS}]")
INCOMPLETE: tuple[State, ...] = ("missing", "failed", "damaged", "unmeasured")


@dataclass(frozen=True)
class TableCell:
    """One cell.

    Args:
        text: plain text of any characters; may contain line breaks.
        state: ``text``: a name or sentence; ``value``: measured by us; ``reference``: from the paper; ``none``: not
            applicable or not known; ``missing``: not run yet; ``failed``: its run failed; ``damaged``: files of its run
            have changed; ``unmeasured``: its run lacks this quantity.
        runs: ids of the runs that it was computed from.
        note: a footnote; cells with the same footnote share its mark.

    Raises:
        ValueError: unknown state.
    """

    text: str
    state: State = "text"
    runs: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"cell {self.text!r}: state={self.state!r}; valid: {', '.join(STATES)}")

    @property
    def shown(self) -> str:
        """The text with the state in words where the text lacks it, so that no rendering relies on color alone."""
        if self.state == "none":
            return self.text or "–"
        if self.state not in INCOMPLETE or self.state in self.text.lower():
            return self.text
        return f"{self.text} ({self.state})" if self.text else self.state


@dataclass(frozen=True)
class TableContents:
    """Rows of cells under a row of column names.

    Args:
        title: a few words.
        caption: scale, seeds, commit, data.
        columns: column names, possibly empty strings.
        rows: one cell per column.

    Raises:
        ValueError: no columns, or a row with a wrong number of cells.
    """

    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError(f"table {self.title!r}: no columns")
        for number, row in enumerate(self.rows, 1):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: row {number} has {len(row)} cells for {len(self.columns)} columns"
                )

    def is_text(self, column: int) -> bool:
        """Whether a column holds text only and is left-aligned; others hold numbers."""
        states = {row[column].state for row in self.rows}
        return not states or ("text" in states and not states & {"value", "reference"})

    def marks(self) -> dict[str, str]:
        """Mark of each footnote, in order of the cells: a to z, aa, ab, ..."""
        notes = dict.fromkeys(cell.note for row in self.rows for cell in row if cell.note)
        return {note: _letters(number) for number, note in enumerate(notes)}

    def heading(self) -> tuple[str, str]:
        """Title with final punctuation, and caption."""
        return (self.title if self.title.endswith((".", "?", "!")) else f"{self.title}."), self.caption


def lines_of(text: str) -> list[str]:
    """Lines of a text, with the replacement character for every character that cannot be displayed."""
    return [FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", line) for line in text.splitlines()]


def _letters(number: int) -> str:
    above, letter = divmod(number, 26)
    return (_letters(above - 1) if above else "") + chr(ord("a") + letter)
