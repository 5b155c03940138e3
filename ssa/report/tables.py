"""A table whose cells know their runs, as Markdown, LaTeX, CSV, HTML and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ssa.report import latex, renderings
from ssa.report.cells import Cell, Contents, State

__all__ = ["Cell", "State", "Table"]


@dataclass(frozen=True)
class Table(Contents):
    """`ssa.report.cells.Contents` with its renderings."""

    def markdown(self) -> str:
        """For GitHub, with title and caption above and footnotes below; references in italics."""
        return renderings.markdown(self)

    def latex(self) -> str:
        r"""A ``table`` environment with booktabs for pdflatex, to be ``\input``.

        References are in italics.  Characters that LaTeX has no sign for are written as ``U+`` and their number.
        """
        return latex.latex(self)

    def csv(self) -> str:
        """Column names, then the cells; without title, caption and footnotes.  Line breaks are all of one kind."""
        return renderings.csv(self)

    def html(self) -> str:
        """A ``<figure class=table>`` for a page of one's own; cells have their state as class and run ids as tooltip.

        Inside, ``div.scroll`` holds the table, so that a wide one scrolls by itself, and ``div.notes`` the footnotes.
        """
        return renderings.html(self)

    def plain(self) -> dict[str, Any]:
        """All of it as JSON can hold it; `of` reads it."""
        return {
            "title": self.title,
            "caption": self.caption,
            "columns": list(self.columns),
            "rows": [
                [{"text": cell.text, "state": cell.state, "runs": list(cell.runs), "note": cell.note} for cell in row]
                for row in self.rows
            ],
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Table:
        """The table that `plain` wrote.

        Raises:
            ValueError: it is not one.
        """
        try:
            rows = tuple(
                tuple(Cell(cell["text"], cell["state"], tuple(cell["runs"]), cell["note"]) for cell in row)
                for row in plain["rows"]
            )
            found = cls(plain["title"], plain["caption"], tuple(plain["columns"]), rows)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a table: {error!r}") from error
        cells = [cell for row in rows for cell in row]
        texts = [found.title, found.caption, *found.columns, *(run for cell in cells for run in cell.runs)]
        for text in [*texts, *(cell.text for cell in cells), *(cell.note for cell in cells)]:
            if not isinstance(text, str):
                raise ValueError(f"not a table: {text!r} in place of text")
        return found
