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

from ssa.viz.plot_style import figure, heat_map, save, shades, write


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1.2.png", "v1.2.svg"]
    png, svg = first
    assert png.startswith(b"\x89PNG")
    assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert b"dc:date" not in svg
    assert b"Software" not in png


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
