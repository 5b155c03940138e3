"""Design of a grid: models that groups fine-tune, and the search of each row's learning rates.

A pretrained model is trained once, by the grid itself, or comes from the Hub; all rows and seeds of a group start from
it.  Both it and the search use `RESERVED_SEED`, which no table reports.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, NamedTuple

from pydantic import Field, model_validator

from experiments.engine.claims import Name
from ssa.config import PositiveFloat, Scale, Section
from ssa.model.config import TemperatureConfig

RESERVED_SEED = 1000
LR, MULTIPLIER = "optim.lr", "optim.temperature_lr_multiplier"
_AT_MOST = 3  # values of each rate


class Pretrained(Section):
    """A model to fine-tune: trained here, or published, depending on the scale."""

    name: Name
    overrides: list[str] = Field([], description="overrides of train.py")
    at: dict[Scale, list[str]] = Field({}, description="scales at which it is trained here, each with overrides")
    published: dict[Scale, Name] = Field({}, description="init_from at other scales")

    @model_validator(mode="after")
    def _comes_from_one_place(self) -> Pretrained:
        if twice := self.at.keys() & self.published.keys():
            raise ValueError(f"pretrained {self.name}: at {', '.join(sorted(twice))} both trained and published")
        return self

    def run(self, scale: Scale) -> tuple[str, ...]:
        """Overrides of the run that trains it at the scale."""
        return (*self.overrides, *self.at[scale], f"seed={RESERVED_SEED}")


class RateSearch(Section):
    """Values of the learning rate, and of its multiplier for temperatures; every row tries all of their pairs."""

    lr: Annotated[list[PositiveFloat], Field(min_length=1, max_length=_AT_MOST)]
    multiplier: Annotated[list[PositiveFloat], Field(min_length=1, max_length=_AT_MOST)]

    def candidates(self, temperature: TemperatureConfig) -> list[Rates]:
        """The rates that a rule tries; the multiplier is left out where no temperature is learned."""
        multipliers: Sequence[float | None] = self.multiplier if temperature.is_learned else [None]
        return [Rates(lr, multiplier) for lr, multiplier in itertools.product(self.lr, multipliers)]


class FineTuning(Section):
    """Fine-tuning, the same in all grids, so that equal runs are shared."""

    pretrained: list[Pretrained] = Field([], description="models that groups name as their start")
    overrides: dict[Scale, list[str]] = Field({}, description="of every group that fine-tunes")
    search: dict[Scale, RateSearch] = Field({}, description="of every group that fine-tunes")

    def model(self, name: str) -> Pretrained:
        return next(model for model in self.pretrained if model.name == name)


class Rates(NamedTuple):
    """Learning rates that a row tries or uses; ``multiplier`` None: it has no learned temperature."""

    lr: float
    multiplier: float | None

    @property
    def overrides(self) -> list[str]:
        own = [] if self.multiplier is None else [f"{MULTIPLIER}={self.multiplier:g}"]
        return [f"{LR}={self.lr:g}", *own]

    def __str__(self) -> str:
        own = "" if self.multiplier is None else f", temperatures x {self.multiplier:g}"
        return f"learning rate {self.lr:g}{own}"


def turns_on_rate(losses: Mapping[Rates, float], others: Mapping[Rates, float]) -> bool:
    """Whether the sign of a difference depends on the learning rate that two rows share.

    Args:
        losses: of one row in the search, by rates; a run that diverged counts as infinite.
        others: of the row that it is compared with.
    """

    def best(found: Mapping[Rates, float], lr: float) -> float:
        return min((loss for rates, loss in found.items() if rates.lr == lr), default=math.nan)

    rates = {rates.lr for rates in losses} & {rates.lr for rates in others}
    return len({_sign(best(losses, lr) - best(others, lr)) for lr in rates} - {0}) > 1


def _sign(difference: float) -> int:
    return 0 if math.isnan(difference) else (difference > 0) - (difference < 0)


def keys(overrides: Iterable[str]) -> set[str]:
    return {override.partition("=")[0] for override in overrides}
