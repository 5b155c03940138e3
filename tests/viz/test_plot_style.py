"""Plots: reproducible bytes, independent of matplotlib settings, atomic files, no pyplot."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib")
import matplotlib as mpl
from conftest import ROOT

from ssa.viz.plot_style import diverging, figure, heat_map, save, shades, write
from ssa.viz.rule_style import STYLES


def draw(stem: Path) -> list[Path]:
    with figure(4, 3) as drawing:
        left, right = drawing.subplots(1, 2)
        left.plot([1, 2, 3], label="a")
        left.legend()
        left.set_xscale("log")
        heat_map(right, [[0.0, 0.5], [float("nan"), 1.0]], rows=["x", "y"], columns=[1, 2], label="share")
        return save(drawing, stem)


def test_png_and_svg_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in draw(tmp_path / "v1.2")]
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 20, "svg.hashsalt": "x", "savefig.dpi": 10}):
        second = [path.read_bytes() for path in draw(tmp_path / "v1.2")]
        assert mpl.rcParams["lines.linewidth"] == 9
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1.2.pdf", "v1.2.png", "v1.2.svg"]
    png, svg, pdf = first
    assert png.startswith(b"\x89PNG")
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert b"dc:date" not in svg
    assert b"Software" not in png
    assert pdf.startswith(b"%PDF")
    assert b"CreationDate" not in pdf


def test_a_figure_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with figure(2, 2) as drawing:
        with pytest.raises(FileNotFoundError):
            save(drawing, tmp_path / "nowhere" / "plot")
        with pytest.raises(KeyError):
            write(drawing, tmp_path / "plot.gif")
    assert list(tmp_path.iterdir()) == []


def test_text_in_any_script_is_drawn_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings(), figure(2, 2) as drawing:
        warnings.simplefilter("error")
        drawing.add_subplot().set_title("日本")
        save(drawing, tmp_path / "plot")


def test_shades_get_lighter() -> None:
    luminance = [0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue, _ in shades(24)]
    assert luminance == sorted(luminance)
    assert luminance[-1] < 0.75  # still seen on white
    assert len(shades(1)) == 1


@pytest.mark.parametrize(("low", "high"), [(0.5, 1.2), (0.2, 0.9), (1.1, 2.0), (1.0, 1.0)])
def test_colors_diverge_around_the_neutral_value_over_the_values_that_occur(low: float, high: float) -> None:
    look = diverging(low, high, 1)
    assert (look["norm"].vmin, look["norm"].vmax) == (low, high)

    def rgb(value: float) -> tuple[float, ...]:
        return tuple(look["cmap"](look["norm"](value)))[:3]

    reach = max(abs(low - 1), abs(high - 1))
    strongest = low if abs(low - 1) == reach else high
    if low < 1 < high:
        assert min(rgb(1.0)) > 0.95
    if low < high:
        assert min(rgb(strongest)) < 0.2
        red, _, blue = rgb(low)
        assert (red < blue) == (low < 1)


def test_rules_differ_in_color_and_without_it() -> None:
    from ssa.command_line.conf_groups import options

    assert set(STYLES) <= set(options()["model/temperature"])
    for looks in ([one.color for one in STYLES.values()], [(one.dash, one.marker) for one in STYLES.values()]):
        assert len(set(looks)) == len(STYLES)
    for one in STYLES.values():
        channels = [int(one.color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
        assert 1.05 / (luminance + 0.05) >= 3, f"{one.name} on white"
        assert (luminance + 0.05) / (0.0091 + 0.05) >= 2.99, f"{one.name} on the dark page"


@pytest.mark.parametrize("shape", [(3, 5), (48, 40)])
def test_a_heat_map_has_as_many_numbers_as_there_is_room_for(shape: tuple[int, int]) -> None:
    rows, columns = shape
    with figure(6, 4) as drawing:
        axes = drawing.add_subplot()
        heat_map(axes, [[0.25] * columns] * rows, rows=range(rows), columns=range(columns), label="share", high=1)
        assert len(axes.texts) == (15 if columns == 5 else 0)
        assert all(len(axis.get_ticklocs()) <= 32 for axis in (axes.xaxis, axes.yaxis))


def test_pyplot_is_never_imported(tmp_path: Path) -> None:
    code = "import sys; sys.path[:0] = ['tests', 'tests/viz']; import test_plot_style as t; from pathlib import Path;"
    code += f"t.draw(Path({str(tmp_path)!r}) / 'p'); sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
