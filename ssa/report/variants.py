"""Runs that differ in their seed alone, as one row: means over seeds, and paired differences to vanilla."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import pandas as pd

from ssa.config import BOOKKEEPING, NAMES
from ssa.model.config import PROJECTIONS
from ssa.paths import install
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
_NAMES = tuple("variant" if "temperature" in name else f"config.{name}" for name in NAMES)
_NAMED = tuple(f"config.model.temperature.{name}" for name in (*PROJECTIONS, "per"))  # by the variant
_RULE = ("config.model.temperature.", "config.optim.temperature_lr_multiplier")
Setting = tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """Finished runs with one config but for the seed.

    Attributes:
        runs: run ids by seed.
        settings: its columns ``config.*``, without seed, names and bookkeeping, as text.
        names: of backbone, size, variant (as in figures) and data.
    """

    runs: dict[int, str]
    settings: dict[str, str]
    names: Setting

    @property
    def without_variant(self) -> Setting:
        """The names of backbone, size and data."""
        return tuple(name for kind, name in zip(_NAMES, self.names, strict=True) if kind != "variant")

    @property
    def is_vanilla(self) -> bool:
        return self.names[_NAMES.index("variant")] == "vanilla"

    @property
    def without_rule(self) -> Setting:
        """The settings apart from the temperature: variants that share them are compared."""
        return tuple(f"{name}={value}" for name, value in self.settings.items() if not name.startswith(_RULE))


def variants(frame: pd.DataFrame) -> list[Variant]:
    """The variants of a table of runs (`ssa.record.runs.load`): vanilla, then others, in the order of their first runs.

    Unfinished and damaged runs are left out.
    """
    if LOSS not in frame.columns:
        return []
    good = frame[(frame["status"] == "finished") & frame["damage"].isin(["", NO_CHECKSUMS]) & frame[LOSS].notna()]
    ignored = {f"config.{name}" for name in ("seed", "init_from", *BOOKKEEPING, *NAMES)}
    kept = [name for name in good.columns if name.startswith("config.") and name not in ignored]
    kept = [name for name in kept if not name.startswith("config.logger.")]
    texts = good[kept].map(lambda value: "" if value is None or value != value else str(value))
    found: dict[Setting, dict[int, str]] = {}
    for run_id, seed, row in zip(good.index, good["config.seed"], texts.itertuples(index=False), strict=True):
        found.setdefault(tuple(row), {}).setdefault(int(seed), run_id)
    made = []
    for row, runs in found.items():
        settings, first = dict(zip(kept, row, strict=True)), next(iter(runs.values()))
        model, size, variant, data = (str(good.at[first, name]) for name in _NAMES)
        names = (model.removeprefix("ssa_"), size, style_of(variant).name, data)
        made.append(Variant(dict(sorted(runs.items())), settings, names))
    return sorted(made, key=lambda one: not one.is_vanilla)


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
        caption = f"Means over seeds; intervals need {install('experiments')}. "
    caption += "Loss and entropy in nats, of the best weights. No correction for the number of differences."
    columns = ("variant", "seeds", "validation loss", "difference to vanilla", *measured)
    return Table("Runs that differ in their seed alone", caption, columns, tuple(rows))


def bases(found: Sequence[Variant]) -> list[Variant | None]:
    """The vanilla variant at the settings of each, the one with the most seeds; a vanilla one may be its own."""
    vanilla = {one.without_rule: one for one in sorted(found, key=lambda one: len(one.runs)) if one.is_vanilla}
    return [vanilla.get(one.without_rule) for one in found]


def labels(found: Sequence[Variant]) -> list[str]:
    """A name for each variant: its names as far as they differ, then the other settings in which those beside it do."""
    differ = [len(set(names)) > 1 for names in zip(*(one.names for one in found), strict=True)]
    named = [" ".join(compress(one.names, differ)) for one in found]
    made = []
    for one, name in zip(found, named, strict=True):
        beside = [other for other in found if other.without_variant == one.without_variant]
        keys = [key for key in one.settings if len({other.settings[key] for other in beside}) > 1]
        keys = [key for key in keys if not key.startswith(_NAMED)]
        own = [f"{key.removeprefix('config.')}={one.settings[key]}" for key in keys]
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
