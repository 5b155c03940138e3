"""Renderings of tables, read back by independent parsers."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any
from unicodedata import category
from xml.etree.ElementTree import Element

import html5lib
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from pylatexenc.latex2text import LatexNodes2Text, MacroTextSpec, get_default_latex_context_db
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexGroupNode, LatexMacroNode, LatexSpecialsNode, LatexWalker

from ssa.report import latex
from ssa.report.renderings import to_csv, to_html, to_markdown
from ssa.report.tables import INCOMPLETE, STATES, Table
from ssa.report.tables import TableCell as Cell

SPECIAL = (
    r"""a & b % c $ d $ # _ g_h _i_ { } ~ j ~~k~~ ^ \ \| | *m* [n] <b> > " ' ` -- --- ,, !` :x: &amp; ± τ ≥ – − ² é ł"""
)
NOTE = "first & line\n\nthird {line}\n"
TABLE = Table(
    "Perplexity_1 & 2",
    f"scale=laptop; {SPECIAL}",
    ("", "ours", "paper's", "verdict"),
    (
        (Cell(SPECIAL), Cell("3.21 ± 0.04", "value", ("a<1>", 'b"2"'), NOTE), Cell("3.0", "reference"), Cell("holds")),
        (Cell("[b]"), Cell("", "missing", (), SPECIAL), Cell("", "none"), Cell("*")),
        (Cell("*"), Cell("7", "value"), Cell("8", "reference"), Cell("_")),
        (Cell("two\nlines"), Cell("4.5", "damaged", ("c",), NOTE), Cell("1 (B)", "reference", (), "third"), Cell("")),
    ),
)
# As rows of plain text with footnote marks, in the renderings that have these.
SHOWN = [
    list(TABLE.columns),
    [SPECIAL, "3.21 ± 0.04[a]", "3.0", "holds"],
    ["[b]", "missing[b]", "–", "*"],
    ["*", "7", "8", "_"],
    ["two\nlines", "4.5 (damaged)[a]", "1 (B)[c]", ""],
]

# All of Unicode but halves of surrogate pairs, which no file can hold, and more of what means something somewhere.
TEXT = st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from(SPECIAL), max_size=12)
CELL = st.builds(Cell, TEXT, st.sampled_from(STATES), st.lists(TEXT, max_size=2).map(tuple), TEXT)


NONCHARACTERS = Table(
    "\ufffe", "\x00", ("\x7f",), ((Cell("\ufdd0\U0002ffff\x1b", "value", ("\x85", "\uffff"), "\x9f"),),)
)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    width, height = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    rows = tuple(tuple(draw(CELL) for _ in range(width)) for _ in range(height))
    return Table(draw(TEXT), draw(TEXT), tuple(draw(TEXT) for _ in range(width)), rows)


def page(body: str) -> Element:
    """The HTML inside a page, read by a strict parser."""
    document = (
        f"<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8><title>t</title></head><body>{body}</body></html>"
    )
    parsed: Element = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(document)
    return parsed


def text_of(element: Element) -> str:
    inner = "".join(text_of(child) + (child.tail or "") for child in element)
    return "\n" if element.tag == "br" else (element.text or "") + inner


def visible(text: str) -> str:
    """A text as displayed: normalized line breaks, and the replacement character for noncharacters."""

    def shown(sign: str) -> str:
        is_none = category(sign) == "Cc" or ord(sign) & 0xFFFE == 0xFFFE or "\ufdd0" <= sign <= "\ufdef"
        return "\N{REPLACEMENT CHARACTER}" if is_none and sign != "\t" else sign

    return "\n".join("".join(map(shown, line)) for line in text.splitlines())


def cells_of(element: Element) -> list[list[str]]:
    return [[text_of(cell) for cell in row] for row in element.iter("tr")]


def test_html_shows_every_cell_note_and_state() -> None:
    parsed = page(to_html(TABLE))
    assert cells_of(parsed) == SHOWN
    caption = next(parsed.iter("caption"))
    assert text_of(caption) == f"{TABLE.title}. {TABLE.caption}"
    notes = [text_of(note) for note in parsed.iter("p")]
    assert notes == ["[a] first & line\n\nthird {line}", f"[b] {SPECIAL}", "[c] third"]
    rows = list(parsed.iter("tr"))
    assert [cell.get("class") for cell in rows[2]] == ["text", "missing", "none", "text"]
    assert [cell.get("scope") for cell in rows[0]] == ["col"] * 4
    assert [(cell.tag, cell.get("scope")) for cell in rows[1]] == [("th", "row"), *[("td", None)] * 3]
    assert [cell.get("title") for cell in rows[1]] == [None, 'runs: a<1>, b"2"', None, None]
    for row in rows:
        assert ["right" in cell.get("style", "") for cell in row] == [False, True, True, False]
    region = next(parsed.iter("div"))
    assert (region.get("tabindex"), region.get("aria-label")) == ("0", TABLE.title)
    assert "overflow-x:auto" in region.get("style", "")


@given(tables())
@example(TABLE)
@example(NONCHARACTERS)
def test_html_is_valid_and_keeps_any_text(table: Table) -> None:
    found = cells_of(page(to_html(table)))
    marks = table.marks()
    assert found[0] == [visible(name) for name in table.columns]
    for row, cells in zip(found[1:], table.rows, strict=True):
        assert row == [visible(cell.shown) + (f"[{marks[cell.note]}]" if cell.note else "") for cell in cells]


def github(text: str) -> str:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return f"<div>{parser.render(text)}</div>"


def test_markdown_shows_every_cell_and_note() -> None:
    parsed = page(github(to_markdown(TABLE)))
    assert cells_of(parsed) == SHOWN
    texts = [text_of(paragraph).strip() for paragraph in parsed.iter("p")]
    assert texts == [
        f"{TABLE.title}. {TABLE.caption}",
        "[a] first & line\n\nthird {line}",
        f"[b] {SPECIAL}",
        "[c] third",
    ]
    assert [text_of(cell) for cell in parsed.iter("em")] == ["3.0", "8", "1 (B)"]
    assert not list(parsed.iter("del")) + list(parsed.iter("b")) + list(parsed.iter("code")) + list(parsed.iter("a"))
    # GitHub reads mathematics only between two bare dollars.
    assert to_markdown(TABLE).count("$") == to_markdown(TABLE).count("<span>$</span>") == 3 * SPECIAL.count("$")


@given(tables())
@example(TABLE)
def test_markdown_keeps_any_text_and_the_number_of_columns(table: Table) -> None:
    width = len(table.columns)
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert len(lines) == len(table.rows) + 2
    assert all(len(re.split(r"(?<!\\)\|", line)) == width + 2 for line in lines)
    found = cells_of(page(github(to_markdown(table))))
    marks = table.marks()
    for row, cells in zip(found[1:], table.rows, strict=True):
        expected = [visible(cell.shown) + (f"[{marks[cell.note]}]" if cell.note else "") for cell in cells]
        assert ["".join(text.split()) for text in row] == ["".join(text.split()) for text in expected]


@given(tables())
@example(TABLE)
def test_csv_round_trips(table: Table) -> None:
    expected = [list(table.columns), *([cell.shown for cell in row] for row in table.rows)]
    found = list(csv.reader(io.StringIO(to_csv(table), newline="")))
    assert found == [[text.replace("\r\n", "\n").replace("\r", "\n") for text in row] for row in expected]


def test_csv_has_no_footnote_marks_and_unix_lines() -> None:
    table = Table("t", "c", ("a", "b"), ((Cell("x, y", note="n"), Cell("1", "reference", note="m")),))
    assert to_csv(table) == 'a,b\n"x, y",1\n'


@given(tables())
def test_json_round_trips(table: Table) -> None:
    assert Table.of(json.loads(json.dumps(asdict(table)))) == table


def parsed_latex(text: str) -> LatexEnvironmentNode:
    """The `table` environment, after strict parsing: balanced braces, mathematics and environments."""
    nodes = LatexWalker(text, tolerant_parsing=False).get_latex_nodes()[0]
    (environment,) = [node for node in nodes if node.isNodeType(LatexEnvironmentNode)]
    return environment


def rows_of(table: LatexEnvironmentNode) -> list[list[str]]:
    """The cells of its `tabular` as plain text."""
    inner = [node for group in table.nodelist if group.isNodeType(LatexGroupNode) for node in group.nodelist]
    (tabular,) = [node for node in inner if node.isNodeType(LatexEnvironmentNode) and node.envname == "tabular"]
    rows: list[list[list[Any]]] = [[[]]]
    for node in tabular.nodelist:
        if node.isNodeType(LatexMacroNode) and node.macroname == "\\":
            rows.append([[]])
        elif node.isNodeType(LatexSpecialsNode) and node.specials_chars == "&":
            rows[-1].append([])
        elif not (node.isNodeType(LatexMacroNode) and node.macroname in ("toprule", "midrule", "bottomrule")):
            rows[-1][-1].append(node)
    assert LatexNodes2Text().nodelist_to_text(rows.pop()[0]).strip() == ""
    return [[plain(cell) for cell in row] for row in rows]


def plain(nodes: list[Any]) -> str:
    known = get_default_latex_context_db()
    missing = {"textbar": "|", "textless": "<", "textgreater": ">", "textquotedbl": '"', "textasciicircum": "^"}
    known.add_context_category("ours", [MacroTextSpec(*macro) for macro in missing.items()], prepend=True)
    text: str = LatexNodes2Text(known, math_mode="text").nodelist_to_text(nodes)
    return text.replace("{}", "").strip()


def test_latex_shows_every_cell() -> None:
    environment = parsed_latex(latex.to_latex(TABLE))
    assert environment.envname == "table"
    alike = str.maketrans("−²\n", "-2 ")  # what the parser makes of them
    expected = [[re.sub(r"\[(\w)\]$", r"\1", text).translate(alike) for text in row] for row in SHOWN]
    expected[2][0] = "[b]"
    assert rows_of(environment) == expected


@given(tables())
@example(TABLE)
def test_latex_is_balanced_with_a_cell_for_each_column(table: Table) -> None:
    rows = rows_of(parsed_latex(latex.to_latex(table)))
    assert [len(row) for row in rows] == [len(table.columns)] * (len(table.rows) + 1)
    # Which would be read as arguments, even at the start of the next line.
    assert not re.search(r"(\\\\|rule)\s*[*\[]", latex.to_latex(table))
    # The letters that pdflatex is shown to have in the test below.
    assert all(sign.isascii() or "À" <= sign <= "ž" for sign in latex.to_latex(table))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex: texlive-latex-recommended")
def test_pdflatex_compiles_every_sign(tmp_path: Path) -> None:
    draw = Random(0)
    signs = [*latex.SIGNS, *map(chr, range(0x20, 0x250)), *(chr(draw.randrange(0xE000)) for _ in range(1000))]
    signs = [sign for sign in signs if category(sign) != "Cs"]
    states = [state for state in STATES for _ in range(10)]
    rows = tuple((Cell(sign * 2, draw.choice(states), (), "\n" + sign), Cell(f"{sign}-{sign}")) for sign in signs)
    every = [
        Table(SPECIAL, "".join(signs[:400]), (SPECIAL, "*"), rows[start : start + 40])
        for start in range(0, len(rows), 40)
    ]
    packages = "".join(re.findall(r"\\usepackage\S*", latex.to_latex(TABLE).splitlines()[0]))
    body = "\n\\clearpage\n".join(latex.to_latex(table) for table in [TABLE, *every])
    document = rf"\documentclass{{article}}{packages}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "t.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "-draftmode", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    log = (tmp_path / "t.log").read_text(errors="replace")
    assert done.returncode == 0, [line for line in log.splitlines() if line.startswith(("!", "l."))]
    assert "Missing character" not in log


def test_latex_writes_unknown_characters_as_code_points() -> None:
    assert latex.text("中 e\u0301 ﬁ \x07") == "U+4E2D é fi U+FFFD"


def test_every_state_is_named_in_words() -> None:
    rows = tuple((Cell("a"), Cell(text, state)) for state in INCOMPLETE for text in ("", "1.5", f"2 of 3 {state}"))
    table = Table("t", "c", ("", "value"), rows)
    assert [row[1].shown for row in rows[:3]] == ["missing", "1.5 (missing)", "2 of 3 missing"]
    for rendering in (
        to_markdown(table),
        latex.to_latex(table),
        to_csv(table),
        re.sub("<[^>]*>", "", to_html(table)),
    ):
        assert all(rendering.count(state) == 3 for state in INCOMPLETE)


def test_columns_of_numbers_are_right_aligned_despite_missing_values() -> None:
    rows = (
        (Cell("m"), Cell("124m"), Cell("", "missing"), Cell("1", "value"), Cell("?"), Cell("holds")),
        (
            Cell("n"),
            Cell("", "none"),
            Cell("", "none"),
            Cell("", "failed"),
            Cell("1", "reference"),
            Cell("", "missing"),
        ),
    )
    table = Table("t", "c", tuple("abcdef"), rows)
    assert [table.is_text(column) for column in range(6)] == [True, True, False, False, False, True]
    assert r"\begin{tabular}{llrrrl}" in latex.to_latex(table)
    assert "| --- | --- | --: | --: | --: | --- |" in to_markdown(table)


def test_equal_notes_share_a_mark_and_there_are_enough() -> None:
    rows = tuple((Cell("", note=f"note {number}"),) for number in [*range(30), *range(30)])
    assert list(Table("t", "c", ("a",), rows).marks().values()) == [
        *"abcdefghijklmnopqrstuvwxyz",
        "aa",
        "ab",
        "ac",
        "ad",
    ]


def test_a_title_ends_with_one_punctuation_mark() -> None:
    assert to_markdown(Table("Which?", "c", ("a",), ())).startswith("**Which?** c")
    assert to_markdown(Table("This", "", ("a",), ())).startswith("**This.**\n")


def test_invalid_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="row 2 has 1 cells for 2 columns"):
        Table("t", "c", ("a", "b"), ((Cell("1"), Cell("2")), (Cell("1"),)))
    with pytest.raises(ValueError, match="no columns"):
        Table("t", "c", (), ())
    with pytest.raises(ValueError, match="state='lost'; valid: text, value"):
        Cell("1", "lost")  # type: ignore[arg-type]
    odd = {"text": 1.5, "state": "value", "runs": [], "note": ""}
    for change in ({"rows": [[1]]}, {"rows": None}, {"rows": [[odd]], "columns": ["a"]}, {"caption": None}):
        with pytest.raises(ValueError, match="not a table"):
            Table.of({**asdict(TABLE), **change})
    for wrong in ({}, {"title": "only"}):
        with pytest.raises(ValueError, match="not a table"):
            Table.of(wrong)
