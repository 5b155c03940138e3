"""What an item is: a folder of this package with ``config.yaml``, ``reference.csv``, README and results.

``config.yaml`` has a purpose in one line and the values of the settings at each scale.  ``item.py`` has ``Settings``, a
subclass of `ItemSettings`, and ``run(settings, study)``; without it ``config.yaml`` declares a grid of runs, for which
`experiments.engine.grid_item` has both.  Imports at the top of ``item.py`` are light: torch and
matplotlib come when they are used, so that a mistyped key is refused at once.
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

from ssa.config import Scale
from ssa.config_errors import closest
from ssa.errors import UserError
from ssa.model.config import PositiveInt, Section

ITEMS = Path(__file__).parents[1]  # a folder for each
SHARED = Path(__file__).parent  # settings of all


class ItemSettings(Section):
    """What every item can be told.  Fields without a default have their values in the item's ``config.yaml``."""

    scale: Scale = Field(
        "laptop", description="smoke: seconds; laptop: minutes on two cores; gpu; paper: as large as makes sense"
    )
    seeds: Annotated[int, Field(ge=2)] = Field(description="how many, from 0")
    jobs: PositiveInt = Field(2, description="processes at once, of one thread each; no number depends on it")
    to: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="folder for tables and figures; null: the item's own results/, or with other settings than the "
        "scale's a folder of their own under output_dir",
    )
    output_dir: Annotated[str, Field(min_length=1)] = Field(
        "outputs", description="where runs and parts of them are kept"
    )
    rerun: bool = Field(False, description="compute again what is kept")


# Settings that decide no number
BOOKKEEPING = {"scale", "jobs", "to", "output_dir", "rerun", "logger", "plan", "fail_fast", "launcher"}
BOOKKEEPING |= {"launcher_overrides"}
_OCCASIONAL = {"scale", "jobs", "rerun", "plan", "fail_fast", "source"}


class TheoryItemSettings(ItemSettings):
    """Of items whose seeds are trained together."""

    vectorized: bool = Field(
        True,
        description="false: one seed after another, for comparing the time; numbers differ by what rounding grows to",
    )


def _distinct(rules: list[str]) -> list[str]:
    if len(set(rules)) < len(rules):
        raise ValueError(f"rules={','.join(rules)}: one twice; valid: each of them once")
    return rules


Rules = Annotated[list[str], Field(min_length=2), AfterValidator(_distinct)]


class RunItemSettings(ItemSettings):
    """Of items that are made of training runs, which they share where these are equal."""

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
class Item:
    """A table or figure of the paper, by the name of its folder."""

    name: str

    @property
    def folder(self) -> Path:
        """Where it is."""
        return ITEMS / self.name

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
        if issubclass(self.settings, RunItemSettings):
            shared["train"] = _load(SHARED / ("grids.yaml" if self.grid else "runs.yaml"))[scale]
        return {**shared, **(self._config.get("all") or {}), **self._config["scales"][scale]}

    @property
    def grid(self) -> dict[str, Any] | None:
        """What ``config.yaml`` declares, of an item that is one; see `experiments.engine.grid.Grid`."""
        found: dict[str, Any] | None = self._config.get("grid")
        return found

    @property
    def settings(self) -> type[ItemSettings]:
        """What its command line sets."""
        found: type[ItemSettings] = self._module.Settings
        return found

    @property
    def run(self) -> Callable[[Any, Any], None]:
        """Of settings and a `Study`: computes it, and writes tables, figures and conclusions to the study."""
        found: Callable[[Any, Any], None] = self._module.run
        return found

    @property
    def _module(self) -> Any:
        return importlib.import_module("experiments.engine.grid_item" if self.grid else f"experiments.{self.name}.item")

    def is_as_scaled(self, settings: ItemSettings) -> bool:
        """Whether the settings are those of the scale, but for what decides no number."""
        plain: Mapping[str, Any] = settings.model_dump(exclude=BOOKKEEPING)
        scaled = self.settings(**{**self.values(settings.scale), "scale": settings.scale}).model_dump(
            exclude=BOOKKEEPING
        )
        return plain == scaled

    def command(self, settings: ItemSettings) -> str:
        """What is typed for these settings, but for what belongs to one occasion."""
        scaled = self.settings(**{**self.values(settings.scale), "scale": settings.scale}).model_dump()
        plain = settings.model_dump(exclude=_OCCASIONAL)
        own = [f"{key}={_typed(value)}" for key, value in plain.items() if value != scaled[key]]
        return shlex.join(["python", "-m", "experiments", self.name, f"scale={settings.scale}", *own])


def _typed(value: Any) -> str:
    return "null" if value is None else ",".join(value) if isinstance(value, list) else str(value)


def items() -> list[Item]:
    """All of them, by name."""
    return [Item(path.parent.name) for path in sorted(ITEMS.glob("*/config.yaml"))]


def find(name: str) -> Item:
    """One by its name.

    Raises:
        UserError: there is none.
    """
    names = [item.name for item in items()]
    if name not in names:
        raise UserError(f"{name}: no such item{closest(name, names)}; valid: {', '.join(names)}")
    return Item(name)


def _load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded
