"""An experiment: a folder of this package with ``config.yaml``, ``reference.csv``, README and results.

``config.yaml`` has a one-line purpose and the settings: ``all``, then each scale's own.  ``extends:`` names a file of
`experiments/engine` with defaults.  ``experiment.py`` has ``run(settings, context)``, where the annotation of
``settings`` names a subclass of `ExperimentSettings`; without ``experiment.py``, ``config.yaml`` declares a grid of
runs, for `experiments.engine.grid_experiment`.  ``experiment.py`` imports torch and matplotlib only inside functions,
so that a mistyped key is refused at once.
"""

from __future__ import annotations

import csv
import importlib
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from ssa.command_line.settings import typed
from ssa.config import PositiveInt, Scale, Section
from ssa.config_errors import closest, one_line
from ssa.errors import UserError
from ssa.paths import EXPERIMENTS, INSTALLED, command
from ssa.yaml_files import read_yaml

SHARED = Path(__file__).parent  # defaults shared by several experiments
Seeds = Annotated[int, Field(ge=2)]


class ExperimentSettings(Section):
    """Settings of every experiment.  Fields without a default have their values in ``config.yaml``."""

    scale: Scale = Field(
        "laptop",
        description="smoke: seconds; laptop: minutes, overnight: hours on two cores; gpu; paper: as large as sensible",
    )
    seeds: Seeds = Field(description="number of seeds, counted from 0, or from first_seed where there is one")
    jobs: PositiveInt = Field(2, description="parallel processes, one thread each; does not change any number")
    to: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="folder for tables and figures; null: experiments/NAME/results, or a folder under output_dir "
        "where settings differ from the scale's",
    )
    output_dir: Annotated[str, Field(min_length=1)] = Field("outputs", description="folder for runs and cached jobs")
    rerun: bool = Field(False, description="recompute finished runs and cached jobs")


# Settings that do not change any number
BOOKKEEPING = {"scale", "jobs", "to", "output_dir", "rerun", "logger", "plan", "fail_fast", "launcher"}
BOOKKEEPING |= {"launcher_overrides", "render", "recompute"}
_OCCASIONAL = {"scale", "jobs", "rerun", "plan", "fail_fast", "source", "render", "recompute"}


class TheorySettings(ExperimentSettings):
    """Settings of experiments whose seeds are trained together."""

    first_seed: Annotated[int, Field(ge=0)] = Field(
        0, description="the first seed; fresh seeds test a claim that earlier ones left undecided"
    )
    vectorized: bool = Field(
        True, description="false: train seeds one by one, to compare the time; results differ by accumulated rounding"
    )

    @property
    def named_seeds(self) -> str:
        """The seeds, for captions."""
        fresh = f" ({self.first_seed} to {self.first_seed + self.seeds - 1})" if self.first_seed else ""
        return f"{self.seeds} seeds{fresh}"


def _distinct(rules: list[str]) -> list[str]:
    if len(set(rules)) < len(rules):
        raise ValueError(f"rules={','.join(rules)}: one twice; valid: each of them once")
    return rules


Rules = Annotated[list[str], Field(min_length=2), AfterValidator(_distinct)]


class TrainingSettings(ExperimentSettings):
    """Settings of experiments made of training runs.  Equal runs are shared between experiments."""

    train: list[str] = Field(
        description="comma-separated overrides of train.py for every run, including scale=; replaces the scale's list"
    )
    logger: Literal["none", "wandb"] = Field("none", description="log the runs' metrics there too")

    @model_validator(mode="after")
    def _train_names_the_scale(self) -> Self:
        if f"scale={self.scale}" not in self.train:
            raise ValueError(
                f"train={','.join(self.train)}: without scale={self.scale}; train= replaces all of the "
                "scale's overrides, which --help shows"
            )
        return self


class Declaration(Section):
    """The contents of ``config.yaml``."""

    purpose: Annotated[str, Field(min_length=1)]
    extends: str | None = None
    all: dict[str, Any] | None = None
    scales: dict[Scale, dict[str, Any] | None]
    grid: dict[str, Any] | None = None


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper, identified by the name of its folder."""

    name: str

    is_own: ClassVar[bool] = False  # a user's, see `experiments.engine.own_grid`

    @property
    def folder(self) -> Path:
        return EXPERIMENTS / self.name

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of ``python -m experiments``."""
        return (self.name,)

    @property
    def where(self) -> str:
        """The file of the declaration, for messages."""
        return str(self.folder / "config.yaml")

    def results(self, output_dir: str) -> Path:
        """The folder for the results of the declared settings; of an installed package, in the working directory."""
        return Path("experiments", self.name, "results") if INSTALLED else self.folder / "results"

    def result(self, output_dir: str, name: str) -> Path:
        """A file of these results; that of the committed ones, which come with this package, if there is none here."""
        here = self.results(output_dir) / name
        return here if here.exists() or self.is_own else self.folder / "results" / name

    @property
    def declaration(self) -> Declaration:
        """The contents of ``config.yaml``, with the defaults that it extends."""
        return self._declaration

    @cached_property
    def _declaration(self) -> Declaration:
        try:
            return Declaration.model_validate(_with_defaults(Path(self.where)))
        except ValidationError as error:
            raise UserError(f"{self.where}: {one_line(error, Declaration)}") from None

    @property
    def purpose(self) -> str:
        return self.declaration.purpose

    def values(self, scale: str) -> dict[str, Any]:
        """The settings at a scale: ``runs.yaml`` or ``grids.yaml``, then ``all``, then the scale's own."""
        shared = {}
        if issubclass(self.settings, TrainingSettings):
            shared["train"] = _load(SHARED / ("grids.yaml" if self.grid else "runs.yaml")).get(scale)
        own = next((own for name, own in self.declaration.scales.items() if name == scale), None)
        return {**shared, **(self.declaration.all or {}), **(own or {})}

    @property
    def grid(self) -> dict[str, Any] | None:
        """The declaration of a grid, if this is one; see `experiments.engine.grid.Grid`."""
        return self.declaration.grid

    @property
    def settings(self) -> type[ExperimentSettings]:
        found: type[ExperimentSettings] = getattr(self._module, self.run.__annotations__["settings"])
        return found

    @property
    def run(self) -> Callable[[Any, Any], None]:
        """Function of the settings and an `ExperimentContext` that computes the experiment."""
        found: Callable[[Any, Any], None] = self._module.run
        return found

    @property
    def _module(self) -> Any:
        name = "experiments.engine.grid_experiment" if self.grid else f"experiments.{self.name}.experiment"
        return importlib.import_module(name)

    def references(self) -> list[dict[str, str]]:
        """The paper's values, from ``reference.csv``; ``value`` is "-" where it is not known."""
        with (self.folder / "reference.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def _scaled(self, scale: str) -> ExperimentSettings:
        return self.settings(**{**self.values(scale), "scale": scale})

    def has_default_settings(self, settings: ExperimentSettings) -> bool:
        """Whether the settings give the scale's own numbers."""
        return settings.model_dump(exclude=BOOKKEEPING) == self._scaled(settings.scale).model_dump(exclude=BOOKKEEPING)

    def command(self, settings: ExperimentSettings) -> str:
        """The command line for these settings, without those of a single occasion."""
        scaled = self._scaled(settings.scale).model_dump()
        plain = settings.model_dump(exclude=_OCCASIONAL)
        own = [f"{key}={typed(value)}" for key, value in plain.items() if value != scaled[key]]
        return f"{command('-m experiments')} {shlex.join([*self.arguments, f'scale={settings.scale}', *own])}"


def all_experiments() -> list[Experiment]:
    """Sorted by name."""
    return [Experiment(path.parent.name) for path in sorted(EXPERIMENTS.glob("*/config.yaml"))]


def find_experiment(name: str, also: Sequence[str] = ()) -> Experiment:
    """The experiment of this name; ``also``: other valid words, for the error message.

    Raises:
        UserError: there is none.
    """
    names = [experiment.name for experiment in all_experiments()]
    if name not in names:
        valid = [*names, *also]
        raise UserError(f"{name}: no such experiment{closest(name, valid)}; valid: {', '.join(valid)}")
    return Experiment(name)


def _with_defaults(path: Path) -> dict[str, Any]:
    """A file over the one that it extends, over the one that that extends, and so on."""
    own = _load(path)
    return _merged(_with_defaults(SHARED / str(own["extends"])), own) if "extends" in own else own


def _load(path: Path) -> dict[str, Any]:
    try:
        return read_yaml(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """``own`` over ``base``, dictionary by dictionary; lists are replaced."""
    both = {key: _merged(base[key], value) for key, value in own.items() if isinstance(base.get(key), dict)}
    return {**base, **own, **both}
