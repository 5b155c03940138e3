"""An experiment: a folder of this package with ``config.yaml``, ``reference.csv``, README and results.

``config.yaml`` has a one-line purpose and the values of the settings at each scale.  ``experiment.py`` has
``run(settings, context)``, where the annotation of ``settings`` names a subclass of `ExperimentSettings`; without
``experiment.py``, ``config.yaml`` declares a grid of runs, for `experiments.engine.grid_experiment`.  Top-level imports
of ``experiment.py`` are light: torch and matplotlib are imported where they are used, so that a mistyped key is refused
at once.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml  # type: ignore[import-untyped]
from pydantic import AfterValidator, Field, model_validator

from ssa.config import PositiveInt, Scale, Section
from ssa.config_errors import closest
from ssa.errors import UserError

EXPERIMENTS = Path(__file__).parents[1]  # a folder for each
SHARED = Path(__file__).parent  # settings of all


class ExperimentSettings(Section):
    """Settings of every experiment.  Fields without a default have their values in ``config.yaml``."""

    scale: Scale = Field(
        "laptop", description="smoke: seconds; laptop: minutes on two cores; gpu; paper: as large as makes sense"
    )
    seeds: Annotated[int, Field(ge=2)] = Field(description="how many, from 0")
    jobs: PositiveInt = Field(2, description="processes at once, of one thread each; no number depends on it")
    to: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="folder for tables and figures; null: results/ of the experiment, or a folder under output_dir "
        "where settings differ from the scale's",
    )
    output_dir: Annotated[str, Field(min_length=1)] = Field("outputs", description="folder for runs and cached jobs")
    rerun: bool = Field(False, description="compute again what is kept")


# Settings that decide no number
BOOKKEEPING = {"scale", "jobs", "to", "output_dir", "rerun", "logger", "plan", "fail_fast", "launcher"}
BOOKKEEPING |= {"launcher_overrides"}
_OCCASIONAL = {"scale", "jobs", "rerun", "plan", "fail_fast", "source"}


class TheorySettings(ExperimentSettings):
    """Settings of experiments whose seeds are trained together."""

    vectorized: bool = Field(
        True,
        description="false: one seed after another, for comparing the time; numbers differ by what rounding grows to",
    )


def _distinct(rules: list[str]) -> list[str]:
    if len(set(rules)) < len(rules):
        raise ValueError(f"rules={','.join(rules)}: one twice; valid: each of them once")
    return rules


Rules = Annotated[list[str], Field(min_length=2), AfterValidator(_distinct)]


class TrainingSettings(ExperimentSettings):
    """Settings of experiments made of training runs.  Equal runs are shared between experiments."""

    train: list[str] = Field(
        description="overrides of train.py for every run, between commas, in place of all of the scale's: with scale="
    )
    logger: Literal["none", "wandb"] = Field("none", description="where the runs' metrics go besides their folders")

    @model_validator(mode="after")
    def _scale_is_said_once(self) -> Self:
        if f"scale={self.scale}" not in self.train:
            raise ValueError(
                f"train={','.join(self.train)}: without scale={self.scale}; it takes the place of all of the scale's "
                "overrides, which --help shows"
            )
        return self


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper, by the name of its folder."""

    name: str

    @property
    def folder(self) -> Path:
        """Where it is."""
        return EXPERIMENTS / self.name

    @cached_property
    def _config(self) -> dict[str, Any]:
        return _load(self.folder / "config.yaml")

    @property
    def purpose(self) -> str:
        """In one line."""
        return str(self._config["purpose"])

    def values(self, scale: str) -> dict[str, Any]:
        """The settings at a scale: those under ``all``, then the scale's own; of runs, those of ``runs.yaml`` first."""
        shared = {}
        if issubclass(self.settings, TrainingSettings):
            shared["train"] = _load(SHARED / ("grids.yaml" if self.grid else "runs.yaml"))[scale]
        return {**shared, **(self._config.get("all") or {}), **self._config["scales"][scale]}

    @property
    def grid(self) -> dict[str, Any] | None:
        """What ``config.yaml`` declares, of an experiment that is one; see `experiments.engine.grid.Grid`."""
        found: dict[str, Any] | None = self._config.get("grid")
        return found

    @property
    def settings(self) -> type[ExperimentSettings]:
        """What its command line sets."""
        found: type[ExperimentSettings] = getattr(self._module, self.run.__annotations__["settings"])
        return found

    @property
    def run(self) -> Callable[[Any, Any], None]:
        """Function of the settings and an `ExperimentContext` that computes the experiment."""
        found: Callable[[Any, Any], None] = self._module.run
        return found

    @property
    def _module(self) -> Any:
        return importlib.import_module(
            "experiments.engine.grid_experiment" if self.grid else f"experiments.{self.name}.experiment"
        )

    def is_as_scaled(self, settings: ExperimentSettings) -> bool:
        """Whether the settings are those of the scale, but for what decides no number."""
        plain: Mapping[str, Any] = settings.model_dump(exclude=BOOKKEEPING)
        scaled = self.settings(**{**self.values(settings.scale), "scale": settings.scale}).model_dump(
            exclude=BOOKKEEPING
        )
        return plain == scaled

    def command(self, settings: ExperimentSettings) -> str:
        """What is typed for these settings, but for what belongs to one occasion."""
        scaled = self.settings(**{**self.values(settings.scale), "scale": settings.scale}).model_dump()
        plain = settings.model_dump(exclude=_OCCASIONAL)
        own = [f"{key}={_typed(value)}" for key, value in plain.items() if value != scaled[key]]
        return shlex.join(["python", "-m", "experiments", self.name, f"scale={settings.scale}", *own])


def _typed(value: Any) -> str:
    return "null" if value is None else ",".join(value) if isinstance(value, list) else str(value)


def all_experiments() -> list[Experiment]:
    """All of them, by name."""
    return [Experiment(path.parent.name) for path in sorted(EXPERIMENTS.glob("*/config.yaml"))]


def find_experiment(name: str) -> Experiment:
    """One by its name.

    Raises:
        UserError: there is none.
    """
    names = [experiment.name for experiment in all_experiments()]
    if name not in names:
        raise UserError(f"{name}: no such experiment{closest(name, names)}; valid: {', '.join(names)}")
    return Experiment(name)


def _load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded
