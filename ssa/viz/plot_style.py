"""Plot style, readable in grayscale, and reproducible figure files.

Matplotlib is optional: see `available` and `INSTALL`.  No global state is used: no pyplot, no window, no matplotlibrc.
Equal figures give equal bytes on any machine (for one matplotlib version)::

    with figure(6, 4) as drawing:
        axes = drawing.add_subplot()
        heat_map(axes, accuracy, rows=depths, columns=lengths, label="accuracy")
        save(drawing, folder / "passkey")  # passkey.png, passkey.svg and passkey.pdf
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssa.files import replacing
from ssa.paths import install

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSTALL = install("plots")
FORMATS = ("png", "svg", "pdf")
COLUMN, PAGE = 3.15, 6.6  # inches: a column of 8 cm, and the text width of a page
INK, GRAY = "#222222", "#888888"
_STYLE: dict[str, Any] = {
    "font.size": 8,
    "mathtext.fontset": "cm",  # as LaTeX sets formulas
    "axes.titlesize": "medium",
    "axes.titlepad": 4,
    "legend.fontsize": "small",
    "legend.handlelength": 2.4,  # room for a dash pattern
    "axes.edgecolor": GRAY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "image.cmap": "cividis",  # perceptually uniform, dark to light
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "savefig.dpi": 150,
    "text.hinting": "no_hinting",  # exact character widths, not rounded to pixels
    "svg.hashsalt": "ssa",  # reproducible ids
    "pdf.fonttype": 42,  # text stays text
}
_METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Creator": None, "Date": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}
_NUMBERED_CELLS = 400  # larger heat maps have no room for numbers


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def figure(width: float, height: float, layout: Any = "constrained") -> Iterator[Figure]:
    """An empty white figure, sizes in inches; artists added inside the block have the project's style."""
    from matplotlib.figure import Figure

    with _styled():
        yield Figure(figsize=(width, height), layout=layout, facecolor="white")


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as ``stem`` with each suffix of `FORMATS`; return the paths.

    Raises:
        OSError: a file cannot be written.
    """
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in FORMATS]
    for path in paths:
        write(figure, path)
    return paths


def write(figure: Figure, path: Path) -> None:
    """Write a figure atomically, as PNG, SVG or PDF by the suffix of ``path``.

    Raises:
        OSError: the file cannot be written.
    """
    kind = path.suffix[1:].lower()
    with replacing(path) as partial, _styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # scripts missing from the font are drawn as boxes
        figure.savefig(partial, format=kind, metadata=_METADATA[kind])


def shades(n: int) -> list[Any]:
    """Colors for n ordered lines, such as layers, from dark to light, also in grayscale."""
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
    neutral: float | None = None,
) -> None:
    """Draw a matrix as colors with a color bar, and as numbers if there is room.

    ``rows`` and ``columns`` are tick labels, the first row on top; nan cells stay empty.  Colors range from ``low`` to
    ``high``, by default over the values.  With a ``neutral`` value they are those of `diverging`.
    """
    import numpy as np

    matrix = np.asarray(values, float)
    look: dict[str, Any] = {"vmin": low, "vmax": high}
    if neutral is not None:
        look = diverging(float(np.nanmin(matrix)), float(np.nanmax(matrix)), neutral)
    image = axes.imshow(matrix, aspect="auto", **look)
    axes.grid(False)
    for axis, names in ((axes.yaxis, rows), (axes.xaxis, columns)):
        step = max(1, -(-len(names) // 32))  # at most 32 labels, which do not overlap
        axis.set_ticks(range(0, len(names), step), [str(name) for name in names[::step]])
    axes.tick_params(length=0)
    axes.get_figure(root=False).colorbar(image, ax=axes, label=label)  # type: ignore[union-attr]
    if matrix.size <= _NUMBERED_CELLS and matrix.shape[1] <= 16:
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                red, green, blue, _ = image.to_rgba(value)
                color = "black" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.45 else "white"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", size=7, color=color)


def diverging(low: float, high: float, neutral: float) -> dict[str, Any]:
    """``cmap`` and ``norm`` for values from ``low`` to ``high``: blue below ``neutral``, white at it, red above.

    The same distance from ``neutral`` has the same strength on both sides, and only colors of values that occur are
    used: the color bar ends at ``low`` and ``high``.
    """
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, Normalize

    reach = max(abs(low - neutral), abs(high - neutral)) or 1.0
    places = 0.5 + 0.5 * (np.linspace(low, high, 256) - neutral) / reach
    return {"cmap": ListedColormap(colormaps["RdBu_r"](places)), "norm": Normalize(low, high)}


@contextmanager
def _styled() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: Any = matplotlib.rcParams
        settings.update(_STYLE)
        yield
