"""Temperature maps as HTML pages and, with matplotlib, PNG or SVG images."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len, chop_cells

from ssa.errors import UserError
from ssa.files import check_writable, write_atomic, writing
from ssa.viz import plot_style
from ssa.viz.temperature_map import RGB, TemperatureView, color

_Cell = tuple[int, int, str, RGB, RGB, bool]  # row, column, text, background, text color, underlined
_COLUMNS, _POINTS = 100, 10
_ADVANCE, _LINE = 0.602, 1.6  # character width and line height in font sizes (DejaVu Sans Mono)
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{what}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font-family: system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; line-height: 1.5; }}
pre {{ font: 1em/1.8 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }}
span {{ padding: 0.15em 0; }}
.u {{ text-decoration: underline; }}
i {{ display: inline-block; width: 16em; height: 1em; vertical-align: middle; margin: 0 0.5em; }}
</style>
{views}
</html>
"""
_VIEW = """<p>{what}: {numbers}.<br>
{low:.3f}<i style="background:linear-gradient(to right, {stops})"></i>{high:.3f}<br>
{meaning} Point at a token to see its number.</p>
<pre>{spans}</pre>"""
_UNDERLINED = ' class="u"'
_FOLDED = "<details><summary>{over}</summary>\n{view}\n</details>"


def check_files(**files: str | None) -> None:
    """Check that files, by kind (html, png or svg, as the command-line keys), can be written, before computing.

    Raises:
        UserError: the folder does not exist, the suffix does not match, or matplotlib is not installed.
    """
    for key, name in files.items():
        if name is None:
            continue
        path = Path(name)
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise UserError(f"{key}={name}: valid: a file in an existing folder")
        if path.suffix.lower() != f".{key}":
            raise UserError(f"{key}={name}: valid: a name ending in .{key}")
        if key in plot_style.FORMATS and not plot_style.available():
            raise UserError(f"{key}={name}: matplotlib is not installed; run {plot_style.INSTALL}")
        check_writable(path.parent, f"{key}={name}")


def write_html(view: TemperatureView, path: Path, folded: Sequence[TemperatureView] = ()) -> None:
    """Write a self-contained page; each token has its temperature as a tooltip.  ``folded`` are collapsed views.

    Raises:
        UserError: the file cannot be written.
    """
    more = [_FOLDED.format(over=html.escape(other.over), view=_html_of(other)) for other in folded]
    page = _PAGE.format(what=html.escape(view.legend[0]), views="\n".join([_html_of(view), *more]))
    with writing(f"html={path}"):
        write_atomic(path, page)


def _html_of(view: TemperatureView) -> str:
    spans = "".join(
        f'<span style="background:{_hex(background)};color:{_hex(foreground)}"{_UNDERLINED * (value < 1)} '
        f'title="{value:.4f}">{html.escape(piece)}</span>'
        for piece, value, background, foreground in view.tokens()
    )
    what, numbers, meaning = (html.escape(line) for line in view.legend)
    low, *_, high = scale = view.scale(17)
    stops = ", ".join(_hex(color(value, view.reach)) for value in scale)
    return _VIEW.format(what=what, numbers=numbers, meaning=meaning, spans=spans, low=low, high=high, stops=stops)


def write_picture(view: TemperatureView, path: Path, *, explained: bool = True) -> None:
    """Write an image of the text in a monospaced font over a color bar, as PNG, SVG or PDF by the suffix.

    ``explained``: with the legend beside the bar and below it; without, the picture needs a caption.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.patches import Rectangle

    what, numbers, meaning = view.legend
    above = textwrap.wrap(what, _COLUMNS) if explained else []
    numbers = numbers if explained else f"temperature ({view.of})"
    legend = [*above, numbers, *(textwrap.wrap(meaning, _COLUMNS) if explained else [])]
    cells = list(_cells(view))
    first = max(row for row, *_ in cells) + 2  # of the legend
    rows = first + len(legend)
    size = ((_COLUMNS + 4) * _ADVANCE * _POINTS / 72, (rows + 1) * _LINE * _POINTS / 72)  # with margins
    font: dict[str, Any] = {"family": "monospace", "fontsize": _POINTS}
    font |= {"verticalalignment": "center_baseline", "parse_math": False}
    with plot_style.figure(*size, layout=None) as figure, writing(f"{path.suffix[1:]}={path}"):
        axes = figure.add_axes((0, 0, 1, 1), xlim=(-2, _COLUMNS + 2), ylim=(rows + 0.5, -0.5))  # in characters
        axes.set_axis_off()
        for row, column, text, background, foreground, underlined in cells:
            axes.add_patch(Rectangle((column, row + 0.05), cell_len(text), 0.9, color=_hex(background), linewidth=0))
            axes.text(column, row + 0.5, text, color=_hex(foreground), **font)
            if underlined:
                axes.plot([column, column + cell_len(text)], [row + 0.86] * 2, color=_hex(foreground), linewidth=0.8)
        for row, line in enumerate(legend, first):
            axes.text(0, row + 0.5, line, color="black", **font)
        low, high = f"{min(view.values):.3f} ", f" {max(view.values):.3f}"
        row, start = first + len(above), len(numbers) + 3 + len(low)  # the color bar stands beside the numbers
        for step, value in enumerate(view.scale(33)):
            place = (start + step / 2, row + 0.1)
            axes.add_patch(Rectangle(place, 0.5, 0.8, color=_hex(color(value, view.reach)), linewidth=0))
        axes.text(start - len(low), row + 0.5, low, color="black", **font)
        axes.text(start + 16.5, row + 0.5, high, color="black", **font)
        plot_style.write(figure, path)


def _cells(view: TemperatureView) -> Iterator[_Cell]:
    """Token texts on a character grid."""
    row = column = 0
    for piece, value, background, foreground in view.tokens():
        for number, line in enumerate(piece.split("\n")):
            if number:
                row, column = row + 1, 0
            for part in chop_cells(line, _COLUMNS):
                if column + cell_len(part) > _COLUMNS:
                    row, column = row + 1, 0
                yield row, column, part, background, foreground, value < 1
                column += cell_len(part)


def _hex(rgb: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)
