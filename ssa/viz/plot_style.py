"""The one style of the project's plots, readable in greyscale, and how they are written.

Matplotlib is optional: `available` says whether it is there, `INSTALL` how to get it.  Nothing of it is global here: no
pyplot, no window, no matplotlibrc.  The same figure gives the same bytes, whenever and wherever (of one version)::

    with figure(6, 4) as drawing:
        axes = drawing.add_subplot()
        heat_map(axes, accuracy, rows=depths, columns=lengths, label="accuracy")
        save(drawing, folder / "passkey")  # passkey.png and passkey.svg
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssa.files import replacing

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSTALL = "pip install -e '.[plots]'"
FORMATS = ("png", "svg")
INK, GRAY = "#222222", "#888888"
_STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": "medium",
    "axes.edgecolor": GRAY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "image.cmap": "cividis",  # from dark to light in even steps
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "savefig.dpi": 150,
    "text.hinting": "no_hinting",  # characters as wide as they are, not rounded to pixels
    "svg.hashsalt": "ssa",  # else ids differ from one writing to the next
}
_METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Creator": None, "Date": None}}
_NUMBERED_CELLS = 400  # a heat map of more has no room for numbers


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def figure(width: float, height: float, layout: Any = "constrained") -> Iterator[Figure]:
    """An empty white figure; what is added to it in the block has the project's style.

    Args:
        width, height: in inches.
        layout: matplotlib's; None leaves axes where they are put.
    """
    from matplotlib.figure import Figure

    with _styled():
        yield Figure(figsize=(width, height), layout=layout, facecolor="white")


def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes a figure as ``stem.png`` and ``stem.svg``, and says where they are.

    Raises:
        OSError: it cannot be written.
    """
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in FORMATS]
    for path in paths:
        write(figure, path)
    return paths


def write(figure: Figure, path: Path) -> None:
    """Writes a figure in the format that the name ends in, ``.png`` or ``.svg``: whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    kind = path.suffix[1:].lower()
    with replacing(path) as partial, _styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a script that the font lacks is drawn as boxes
        figure.savefig(partial, format=kind, metadata=_METADATA[kind])


def shades(n: int) -> list[Any]:
    """Colors of n lines in an order, such as layers: from dark to light, also in greyscale."""
    import numpy as np
    from matplotlib import colormaps

    return [colormaps["cividis"](0.82 * place) for place in np.linspace(0, 1, n)]


def heat_map(
    axes: Axes,
    values: npt.ArrayLike,
    *,
    rows: Sequence[object],
    columns: Sequence[object],
    label: str,
    low: float | None = None,
    high: float | None = None,
    digits: int = 2,
) -> None:
    """A matrix as colors with a color bar, and as numbers where there is room for them.

    Args:
        axes: to draw in; titles and the names of its axes are the caller's.
        values: (rows, columns); nan stays empty.
        rows, columns: what to write beside each, the first row on top.
        label: what the values are, with their unit.
        low, high: ends of the color scale; default: of the values.
        digits: after the point.
    """
    import numpy as np

    matrix = np.asarray(values, float)
    image = axes.imshow(matrix, vmin=low, vmax=high, aspect="auto")
    axes.grid(False)
    for axis, names in ((axes.yaxis, rows), (axes.xaxis, columns)):
        step = max(1, -(-len(names) // 32))  # all of them would overlap
        axis.set_ticks(range(0, len(names), step), [str(name) for name in names[::step]])
    axes.tick_params(length=0)
    axes.get_figure(root=False).colorbar(image, ax=axes, label=label)  # type: ignore[union-attr]
    middle = sum(image.get_clim()) / 2
    if matrix.size <= _NUMBERED_CELLS and matrix.shape[1] <= 16:
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                color = "black" if value > middle else "white"
                axes.text(column, row, f"{value:.{digits}f}", ha="center", va="center", size=7, color=color)


@contextmanager
def _styled() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: Any = matplotlib.rcParams
        settings.update(_STYLE)
        yield
