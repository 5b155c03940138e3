"""The figure of a grid: panels, common axes, colors of rules."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from experiments.engine.experiment import find_experiment
from experiments.engine.grid import Grid, Metric, declared
from experiments.engine.grid_figure import draw_differences
from ssa.viz import plot_style
from ssa.viz.rule_style import STYLES

VARIANTS = {"SSA (own MLP)": "ssa_mlp", "SSA": "ssa"}


@pytest.fixture
def grid() -> Grid:
    return declared(find_experiment("table3_main"))


class Drawn(SimpleNamespace):
    """Stands in for the context: keeps the figure and its caption."""

    @contextmanager
    def figure(self, name: str, width: float, height: float, caption: str) -> Any:
        with plot_style.figure(width, height) as drawing:
            yield drawing
            self.name, self.width, self.caption, self.panels = name, width, caption, drawing.axes


def draw(grid: Grid, differences: dict[str, dict[str, list[float]]]) -> Drawn:
    drawn = Drawn()
    metric = next(metric for metric in grid.metrics if isinstance(metric, Metric) and metric.compared)
    draw_differences(drawn, grid, metric, differences, VARIANTS, "3 seeds")  # type: ignore[arg-type]
    return drawn


def test_panels_have_one_axis_and_colors_of_rules(grid: Grid) -> None:
    found = {"SSA (own MLP)": [-0.1, 0.1, 0.3], "SSA": [-0.2, -0.1, 0.0]}
    drawn = draw(grid, {"one": found, "two": {name: [2 * value for value in values] for name, values in found.items()}})
    assert (drawn.name, drawn.width) == ("differences", plot_style.COLUMN)
    assert [axes.get_title() for axes in drawn.panels if axes.get_visible()] == ["one", "two"]
    assert len({axes.get_xlim() for axes in drawn.panels}) == 1
    assert drawn.panels[0].get_xscale() == "linear"
    colors = [line.get_color() for line in drawn.panels[0].lines if line.get_marker() == "o"]
    assert colors == [STYLES["ssa_mlp"].color, STYLES["ssa"].color]
    assert "3 seeds" in drawn.caption


def test_groups_of_unequal_size_are_logarithmic_away_from_zero(grid: Grid) -> None:
    drawn = draw(
        grid, {"small": {"SSA (own MLP)": [], "SSA": [0.01, 0.02]}, "large": {"SSA (own MLP)": [], "SSA": [1, 2]}}
    )
    assert {axes.get_xscale() for axes in drawn.panels} == {"symlog"}


def test_a_group_without_runs_has_no_panel(grid: Grid) -> None:
    empty = {"SSA (own MLP)": [], "SSA": []}
    drawn = draw(grid, {"one": {"SSA (own MLP)": [], "SSA": [0.1, 0.2]}, "not run": empty})
    assert [axes.get_title() for axes in drawn.panels] == ["one"]
    assert [axes.get_title() for axes in draw(grid, {"not run": empty}).panels] == ["not run"]
