"""Tables as Markdown, LaTeX, CSV, HTML and JSON; cells list the runs they were computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ssa.report import latex, renderings
from ssa.report.table_cells import State, TableCell, TableContents

__all__ = ["State", "Table", "TableCell"]


@dataclass(frozen=True)
class Table(TableContents):
    """Table contents with their renderings; see `ssa.report.table_cells.TableContents`."""

    def markdown(self) -> str:
        """GitHub Markdown, title and caption above, footnotes below; references in italics."""
        return renderings.markdown(self)

    def latex(self) -> str:
        r"""A ``table`` environment with booktabs for pdflatex, to be ``\input``.

        References are in italics.  Characters without a LaTeX equivalent are written as ``U+`` and their code point.
        """
        return latex.latex(self)

    def csv(self) -> str:
        """Column names and cells, without title, caption and footnotes; line breaks are ``\\n``."""
        return renderings.csv(self)

    def html(self) -> str:
        """A ``<figure class=table>``; each cell has its state as class and its run ids as tooltip.

        Inside, ``div.scroll`` holds the table, so that a wide table scrolls on its own, ``div.notes`` the footnotes.
        """
        return renderings.html(self)

    def plain(self) -> dict[str, Any]:
        """Plain values for JSON; `of` is the inverse."""
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
        """The inverse of `plain`.

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
        cells = [cell for row in rows for cell in row]
        texts = [found.title, found.caption, *found.columns, *(run for cell in cells for run in cell.runs)]
        for text in [*texts, *(cell.text for cell in cells), *(cell.note for cell in cells)]:
            if not isinstance(text, str):
                raise ValueError(f"not a table: {text!r} is not text")
        return found
