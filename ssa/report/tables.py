"""Tables as Markdown, LaTeX, CSV, HTML and JSON; cells list the runs they were computed from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ssa.report.latex import to_latex
from ssa.report.renderings import to_csv, to_html, to_markdown
from ssa.report.table_cells import State, TableCell, TableContents

__all__ = ["State", "Table", "TableCell"]


@dataclass(frozen=True)
class Table(TableContents):
    """Table contents with their renderings; see `ssa.report.table_cells.TableContents`."""

    markdown = to_markdown
    latex = to_latex
    csv = to_csv
    html = to_html

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
