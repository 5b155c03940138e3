"""Tables: cells list the runs they were computed from; `ssa.report.renderings` and `ssa.report.latex` render them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

State = Literal["text", "value", "reference", "none", "missing", "failed", "damaged", "unmeasured"]
STATES: tuple[State, ...] = get_args(State)
# Not displayable: control characters, surrogates and noncharacters.
NONCHARACTERS = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
FORBIDDEN = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{NONCHARACTERS}]")
INCOMPLETE: tuple[State, ...] = ("missing", "failed", "damaged", "unmeasured")


@dataclass(frozen=True)
class TableCell:
    """One cell.

    States: ``text``, a name or sentence; ``value``, measured by us; ``reference``, from the paper; ``none``, not
    applicable or not known; ``missing``, not run yet; ``failed``, its run failed; ``damaged``, files of its run have
    changed; ``unmeasured``, its run lacks this quantity.

    Raises:
        ValueError: unknown state.
    """

    text: str  # plain text of any characters; may contain line breaks
    state: State = "text"
    runs: tuple[str, ...] = ()  # ids of the runs that it was computed from
    note: str = ""  # a footnote; cells with the same footnote share its mark

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
class Table:
    """Rows of cells under a row of column names.

    Raises:
        ValueError: no columns, or a row with a wrong number of cells.
    """

    title: str
    caption: str  # scale, seeds, commit, data
    columns: tuple[str, ...]  # names, possibly empty
    rows: tuple[tuple[TableCell, ...], ...]

    def __post_init__(self) -> None:
        if not self.columns:
            raise ValueError(f"table {self.title!r}: no columns")
        for number, row in enumerate(self.rows, 1):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"table {self.title!r}: row {number} has {len(row)} cells for {len(self.columns)} columns"
                )

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Table:
        """The table of plain values: ``Table.of(dataclasses.asdict(table)) == table``, also after a trip through JSON.

        Raises:
            ValueError: not a table.
        """
        try:
            rows = tuple(
                tuple(TableCell(cell["text"], cell["state"], tuple(cell["runs"]), cell["note"]) for cell in row)
                for row in plain["rows"]
            )
            found = cls(plain["title"], plain["caption"], tuple(plain["columns"]), rows)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a table: {error!r}") from error
        texts = [text for row in rows for cell in row for text in (cell.text, cell.note, *cell.runs)]
        for text in (found.title, found.caption, *found.columns, *texts):
            if not isinstance(text, str):
                raise ValueError(f"not a table: {text!r} is not text")
        return found

    def is_text(self, column: int) -> bool:
        """Whether a column holds text only and is left-aligned; others hold numbers."""
        states = {row[column].state for row in self.rows}
        return not states or ("text" in states and not states & {"value", "reference"})

    def marks(self) -> dict[str, str]:
        """Mark of each footnote, in order of the cells: a to z, aa, ab, ..."""
        notes = dict.fromkeys(cell.note for row in self.rows for cell in row if cell.note)
        return {note: _letters(number) for number, note in enumerate(notes)}

    @property
    def heading(self) -> str:
        """The title with final punctuation."""
        return self.title if self.title.endswith((".", "?", "!")) else f"{self.title}."


def lines_of(text: str) -> list[str]:
    """Lines of a text, with the replacement character for every character that cannot be displayed."""
    return [FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", line) for line in text.splitlines()]


def _letters(number: int) -> str:
    above, letter = divmod(number, 26)
    return (_letters(above - 1) if above else "") + chr(ord("a") + letter)
