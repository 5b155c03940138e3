"""Runs that differ in their seed alone, as one row: means over seeds, and paired differences to vanilla."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ssa.config import BOOKKEEPING, NAMES
from ssa.model.config import PROJECTIONS
from ssa.record.checksums import NO_CHECKSUMS
from ssa.report.tables import Table, TableCell
from ssa.statistics import Estimate, has_intervals, mean_interval, paired_interval, shown
from ssa.viz.rule_style import style_of

LOSS = "best/val/loss"
_COLUMNS = {  # title, column, digits
    "validation perplexity": ("best/val/perplexity", 2),
    "test perplexity": ("best/test/perplexity", 2),
    "attention entropy": ("best/val/attention_entropy", 3),
}
_NAMES = tuple(f"config.{name}" for name in NAMES)
_RULE = ("config.model.temperature.", "config.optim.temperature_lr_multiplier")
_SCALED = tuple(f"config.model.temperature.{name}" for name in PROJECTIONS)
Setting = tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """Finished runs with one config but for the seed.

    Attributes:
        runs: run ids by seed.
        settings: its columns ``config.*``, without seed, names and bookkeeping, as text.
        names: of model, size, temperature and data.
    """

    runs: dict[int, str]
    settings: dict[str, str]
    names: Setting

    @property
    def rule(self) -> str:
        """The terms of each projection's temperature, such as ``query(shared log)``; empty for vanilla."""
        terms: dict[str, list[str]] = {}
        for name, value in self.settings.items():
            if name.startswith(_SCALED) and value not in ("", "none"):
                terms.setdefault(name.split(".")[3], []).append(value)
        return " ".join(f"{projection}({' '.join(chosen)})" for projection, chosen in terms.items())

    @property
    def without_rule(self) -> Setting:
        """The settings apart from the temperature: variants that share them are compared."""
        return tuple(f"{name}={value}" for name, value in self.settings.items() if not name.startswith(_RULE))


def variants(frame: pd.DataFrame) -> list[Variant]:
    """The variants of a table of runs (`ssa.record.runs.load`), in the order of their first runs.

    Unfinished and damaged runs are left out.
    """
    if LOSS not in frame.columns:
        return []
    good = frame[(frame["status"] == "finished") & frame["damage"].isin(["", NO_CHECKSUMS]) & frame[LOSS].notna()]
    ignored = {f"config.{name}" for name in ("seed", "init_from", *BOOKKEEPING)}
    kept = [name for name in good.columns if name.startswith("config.") and name not in {*ignored, *_NAMES}]
    kept = [name for name in kept if not name.startswith("config.logger.")]
    texts = good[kept].map(lambda value: "" if value is None or value != value else str(value))
    found: dict[Setting, dict[int, str]] = {}
    for run_id, seed, row in zip(good.index, good["config.seed"], texts.itertuples(index=False), strict=True):
        found.setdefault(tuple(row), {}).setdefault(int(seed), run_id)
    made = []
    for row, runs in found.items():
        settings, first = dict(zip(kept, row, strict=True)), next(iter(runs.values()))
        names = tuple(_shown_name(name, str(good.at[first, name])) for name in _NAMES if name in good.columns)
        made.append(Variant(dict(sorted(runs.items())), settings, names))
    return made


def _shown_name(column: str, value: str) -> str:
    """That of the temperature rule is the one in figures."""
    return style_of(value).name if column == "config.model.temperature.name" else value


def table(frame: pd.DataFrame) -> Table | None:
    """A row for each variant with several seeds, and vanilla ones to compare them with; None if there is none."""
    found = [one for one in variants(frame) if len(one.runs) > 1]
    if not found:
        return None
    rows = [_row(frame, *each) for each in zip(found, bases(found), labels(found), strict=True)]
    measured = [title for title, (key, _) in _COLUMNS.items() if key in frame.columns]
    if has_intervals():
        caption = "Means and 95% intervals (Student's t) over seeds; differences are paired at equal seed. "
    else:
        caption = "Means over seeds; intervals need pip install -e '.[experiments]'. "
    caption += "Loss and entropy in nats, of the best weights. No correction for the number of differences."
    columns = ("variant", "seeds", "validation loss", "difference to vanilla", *measured)
    return Table("Runs that differ in their seed alone", caption, columns, tuple(rows))


def bases(found: Sequence[Variant]) -> list[Variant | None]:
    """The vanilla variant at the settings of each, the one with the most seeds; a vanilla one may be its own."""
    vanilla = {one.without_rule: one for one in sorted(found, key=lambda one: len(one.runs)) if not one.rule}
    return [vanilla.get(one.without_rule) for one in found]


def labels(found: Sequence[Variant]) -> list[str]:
    """A name for each variant: its names as far as they differ, then the settings that tell equal names apart."""
    differ = [len(set(names)) > 1 for names in zip(*(one.names for one in found), strict=True)]
    named = [" ".join(name for name, shown in zip(one.names, differ, strict=True) if shown) for one in found]
    made = []
    for one, name in zip(found, named, strict=True):
        same = [other for other, its in zip(found, named, strict=True) if its == name]
        keys = [key for key in one.settings if len({other.settings[key] for other in same}) > 1]
        own = [f"{key.removeprefix('config.')}={one.settings[key]}" for key in keys if not key.startswith(_SCALED)]
        own = [*([one.rule or "vanilla"] if len({other.rule for other in same}) > 1 else []), *own]
        made.append(", ".join([*([name] if name else []), *own]) or " ".join(one.names))
    return made


def _row(frame: pd.DataFrame, one: Variant, base: Variant | None, label: str) -> tuple[TableCell, ...]:
    ids = tuple(one.runs.values())

    def mean(key: str, digits: int) -> TableCell:
        values = [float(value) for value in frame.loc[list(ids), key] if not pd.isna(value)]
        return TableCell(shown(_mean(values), digits), "value", ids) if values else TableCell("", "none")

    cells = [TableCell(label), TableCell(str(len(ids)), "value", ids), mean(LOSS, 4)]
    shared = [] if base is None else sorted(one.runs.keys() & base.runs.keys())
    if base is one:
        cells.append(TableCell("baseline", "none"))
    elif base is None or not shared:
        cells.append(TableCell("", "none"))
    else:
        values, bases = ([float(frame.at[which.runs[seed], LOSS]) for seed in shared] for which in (one, base))
        note = "" if len(shared) == len(ids) else f"At the {len(shared)} seeds that both have."
        cells.append(TableCell(shown(_paired(values, bases), 4), "value", ids, note))
    cells += [mean(key, digits) for key, digits in _COLUMNS.values() if key in frame.columns]
    return tuple(cells)


def _mean(values: Sequence[float]) -> Estimate:
    if has_intervals():
        return mean_interval(values)
    return Estimate(math.fsum(values) / len(values), math.nan, math.nan, math.nan, len(values))


def _paired(values: Sequence[float], bases: Sequence[float]) -> Estimate:
    if has_intervals():
        return paired_interval(values, bases)
    return _mean([value - base for value, base in zip(values, bases, strict=True)])
