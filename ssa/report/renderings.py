"""Markdown, CSV and HTML renderings of tables."""

from __future__ import annotations

import re
from html import escape

from ssa.files import to_csv as csv_text
from ssa.report.latex import to_latex
from ssa.report.tables import Table, TableCell, lines_of

# Markup of Markdown or GitHub, except "_" between letters and "&" that starts no entity.
MARKUP = re.compile(r"[\\`*\[\]<|~]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")


def by_suffix(table: Table) -> dict[str, str]:
    """All renderings, by the suffix of their file."""
    return {"csv": to_csv(table), "md": to_markdown(table), "tex": to_latex(table), "html": to_html(table)}


def to_markdown(table: Table) -> str:
    """GitHub Markdown, title and caption above, footnotes below; references in italics."""
    marks = table.marks()
    rules = ["---" if table.is_text(column) else "--:" for column in range(len(table.columns))]
    rows = [[_markdown(name) for name in table.columns], rules]
    rows += [[_markdown_cell(cell, marks) for cell in row] for row in table.rows]
    parts = [
        f"**{_markdown(table.heading)}** {_markdown(table.caption)}".rstrip(),
        "\n".join(f"| {' | '.join(row)} |" for row in rows),
        *(f"<sup>[{mark}]</sup> {_markdown(note)}" for note, mark in marks.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_cell(cell: TableCell, marks: dict[str, str]) -> str:
    text = _markdown(cell.shown)
    if cell.state == "reference" and text:
        text = f"*{text}*"
    return f"{text}<sup>[{marks[cell.note]}]</sup>" if cell.note else text


def _markdown(text: str) -> str:
    lines = [MARKUP.sub(r"\\\g<0>", line.strip()) for line in lines_of(text)]
    # GitHub reads $...$ as mathematics even after a backslash; its documentation recommends <span>.
    return "<br>".join(lines).replace("$", "<span>$</span>")


def to_csv(table: Table) -> str:
    r"""Column names and cells, without title, caption and footnotes; line breaks are ``\n``."""
    rows = [table.columns, *([cell.shown for cell in row] for row in table.rows)]
    return csv_text([re.sub(r"\r\n?", "\n", text) for text in row] for row in rows)  # csv does not quote "\r"


def to_html(table: Table) -> str:
    """A ``<figure class=table>``; each cell has its state as class and its run ids as tooltip.

    Inside, ``div.scroll`` holds the table, so that a wide table scrolls on its own, ``div.notes`` the footnotes.
    """
    marks = table.marks()
    is_text = [table.is_text(column) for column in range(len(table.columns))]
    head = "".join(
        f'<th scope="col" style="text-align:{"left" if left else "right"}">{_html(name)}</th>'
        for name, left in zip(table.columns, is_text, strict=True)
    )
    rows = []
    for row in table.rows:
        tags = ["th" if is_text[0] else "td", *["td"] * (len(row) - 1)]
        cells = [_html_cell(*cell, marks) for cell in zip(row, tags, is_text, strict=True)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    label = _attribute(table.title)
    notes = [f"<p><sup>[{mark}]</sup> {_html(note)}</p>" for note, mark in marks.items()]
    return "\n".join([
        '<figure class="table">',
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0" style="overflow-x:auto">',
        "<table>",
        f"<caption><strong>{_html(table.heading)}</strong> {_html(table.caption)}</caption>",
        f"<thead>\n<tr>{head}</tr>\n</thead>",
        "<tbody>", *rows, "</tbody>",
        "</table>",
        "</div>",
        *(['<div class="notes">', *notes, "</div>"] if notes else []),
        "</figure>",
    ]) + "\n"  # fmt: skip


def _html_cell(cell: TableCell, tag: str, is_text: bool, marks: dict[str, str]) -> str:
    text = _html(cell.shown)
    if cell.state == "reference":
        text = f"<em>{text}</em>"
    if cell.note:
        text += f"<sup>[{marks[cell.note]}]</sup>"
    runs = f' title="runs: {_attribute(", ".join(cell.runs))}"' if cell.runs else ""
    scope = ' scope="row"' if tag == "th" else ""
    style = "text-align:left" if is_text else "text-align:right;white-space:nowrap"
    return f'<{tag}{scope} class="{cell.state}" style="{style}"{runs}>{text}</{tag}>'


def _attribute(text: str) -> str:
    return escape(" ".join(lines_of(text)))


def _html(text: str) -> str:
    return "<br>".join(escape(line) for line in lines_of(text))
