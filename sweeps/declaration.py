"""The declaration of a sweep: its YAML file, checked."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ssa.command_line.compose import configured
from ssa.command_line.settings import typed
from ssa.config import Config, PositiveInt, Section
from ssa.config_errors import one_line
from ssa.errors import UserError
from ssa.paths import INSTALLED, ROOT
from ssa.record.run_files import summary_name
from ssa.redaction import redacted
from ssa.yaml_files import read_yaml

if TYPE_CHECKING:
    from optuna import Trial

Value = str | int | float | bool | None
Bound = Annotated[float, Field(strict=False, allow_inf_nan=False)]  # YAML reads 1e-3 as text
Name = Annotated[str, Field(min_length=1)]


class Dimension(Section):
    """The values of one override: numbers from ``low`` to ``high``, both included, or ``choices``."""

    type: Literal["float", "int", "categorical"]
    low: Bound | None = None
    high: Bound | None = None
    log: bool = Field(False, description="log-uniform")
    choices: list[Value] = Field(default=[], description="YAML values")

    @property
    def problem(self) -> str | None:
        """What is invalid, or None."""
        if self.type == "categorical":
            if redacted(self.choices) != self.choices:
                return "a choice looks like a key or a token, and the study would record it"
            if not self.choices or self.low is not None or self.high is not None or self.log:
                return "valid for categorical: choices, one at least, and no low, high or log"
            return None
        if self.choices or self.low is None or self.high is None or self.low > self.high:
            return f"valid for {self.type}: low and high, in this order, and no choices"
        if self.type == "int" and (self.low % 1 or self.high % 1):
            return "valid for int: low and high that are whole numbers"
        if self.log and self.low <= 0:
            return "valid with log: low > 0"
        return None

    def suggest(self, trial: Trial, key: str) -> Value:
        """Optuna's value for a trial; asking again gives the same value."""
        low, high = self.low or 0.0, self.high or 0.0
        if self.type == "int":
            return trial.suggest_int(key, int(low), int(high), log=self.log)
        if self.type == "float":
            return trial.suggest_float(key, low, high, log=self.log)
        choice: Value = trial.suggest_categorical(key, self.choices)
        return choice

    def listed(self) -> list[Value] | None:
        """Every value; None for a float."""
        if self.type == "int":
            return list(range(int(self.low or 0), int(self.high or 0) + 1))
        return self.choices if self.type == "categorical" else None

    def extremes(self) -> list[Value]:
        """Values that are valid only if all values are: both ends, or every choice."""
        ends: list[Value] = [self.low, self.high]
        return self.choices or ([int(end) for end in ends if end is not None] if self.type == "int" else ends)


class Sampler(Section):
    """Chooses the values of a trial from the seed, its number and the trials before it."""

    name: Literal["tpe", "random", "grid"] = "tpe"
    seed: Annotated[int, Field(ge=0)] = 0
    startup_trials: PositiveInt = Field(10, description="tpe: number of random trials before it")


class Pruner(Section):
    """Stops a trial early by its validations so far; steps are optimizer steps.

    ``median``: stops a trial worse than the median of the others at the same step.  ``halving``: keeps the best
    1 / ``reduction_factor`` of the trials at ``min_steps``, then at ``reduction_factor`` times as many, and so on.
    """

    name: Literal["none", "median", "halving"] = "none"
    startup_trials: Annotated[int, Field(ge=0)] = Field(
        5, description="median: number of trials that must finish first"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="median: no trial is stopped before")
    min_steps: PositiveInt = Field(100, description="halving")
    reduction_factor: Annotated[int, Field(ge=2)] = Field(4, description="halving")


class Sweep(Section):
    """A search over values of overrides of ``train.py``."""

    metric: Name = Field(
        "best/val/loss", description="a name in summary.json; the pruner reads it in metrics.jsonl, without best/"
    )
    direction: Literal["minimize", "maximize"] = "minimize"
    overrides: list[str] = Field(default=[], description="overrides of every trial")
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()

    @model_validator(mode="after")
    def _is_valid(self) -> Self:
        if (name := summary_name(self.metric)) != self.metric:
            raise ValueError(f"metric={self.metric}: called {name} in summary.json; write metric: {name}")
        for key, dimension in self.space.items():
            if dimension.problem:
                raise ValueError(f"space.{key}: {dimension.problem}")
            if self.sampler.name == "grid" and dimension.listed() is None:
                raise ValueError(f"space.{key}: float; valid for sampler.name=grid: int or categorical")
        return self

    def points(self) -> list[dict[str, Value]]:
        """All combinations of a grid; the last key varies fastest."""
        lists = [dimension.listed() or [] for dimension in self.space.values()]
        return [dict(zip(self.space, values, strict=True)) for values in itertools.product(*lists)]

    def configs(self, more: list[str]) -> list[Config]:
        """The configs at both ends of each dimension, with more overrides than the declared ones.

        Raises:
            UserError: ``train.py`` refuses a key or a value.
        """
        first = {key: dimension.extremes()[0] for key, dimension in self.space.items()}
        return [
            configured(*self.overrides, *more, *as_overrides({**first, key: value}))
            for key, dimension in self.space.items()
            for value in dimension.extremes()
        ]


def as_overrides(values: dict[str, Value]) -> list[str]:
    return [f"{key}={typed(value)}" for key, value in values.items()]


def declared() -> list[Path]:
    """The files of this folder, where it is in the working directory or installed."""
    return sorted((ROOT if INSTALLED else Path()).glob("sweeps/optuna_*.yaml"))


def load(file: Path) -> Sweep:
    """Reads a declaration from its file.

    Raises:
        UserError: it cannot be read, or is invalid.
    """
    try:
        content = read_yaml(file)
        if content.keys() & {"program", "method", "parameters"}:
            raise UserError(f"{file}: a W&B sweep; start it with: wandb sweep {file}")
        return Sweep.model_validate(content)
    except FileNotFoundError:
        known = ", ".join(map(str, declared()))
        raise UserError(f"{file}: no such file{'; there are: ' + known if known else ''}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise UserError(f"{file}: {one_line(error, Sweep)}") from None
