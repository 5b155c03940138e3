"""Grids that a user declares: a YAML file, or the command ``compare``.

Both declare rows, which are compared, and groups, within which they are compared; there are no reference values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from experiments.engine.claims import Name
from experiments.engine.experiment import Declaration, Experiment, ExperimentSettings, Seeds
from experiments.engine.grid import GridGroup, GridRow, GridSettings, Metric
from ssa.config import SCALES, Section
from ssa.config_errors import one_line
from ssa.errors import UserError
from ssa.yaml_files import read_yaml

COMPARE = "compare"
ONE_GROUP = "all runs"  # the group of a grid without groups
PURPOSE = "compare models on your own text: models=gpt2,ssa_gpt2 train='data=text,data.train=books/*.txt'"
_METRICS = [
    Metric(name="validation loss", key="best/val/loss", digits=4, compared=True, smallest=0.005),
    Metric(name="validation perplexity", key="best/val/perplexity", digits=2),
    Metric(name="test perplexity", key="best/test/perplexity", digits=2),
    Metric(name="attention entropy", key="best/val/attention_entropy"),
    Metric(name="parameters", key="parameters.total", digits=0),
]


class OwnClaim(Section):
    """Claim that a row's metric is lower (or higher) than another's."""

    row: Name
    against: Name | None = Field(None, description="null: the first row")
    group: Name | None = Field(None, description="null: the first group")
    metric: Name | None = Field(None, description="null: the first metric")
    expected: Literal["lower", "higher"] = "lower"


class OwnGrid(Section):
    """The contents of a file."""

    rows: list[GridRow] = Field(min_length=2, description="what is compared; the first is the baseline")
    groups: list[GridGroup] = Field([GridGroup(name=ONE_GROUP)], min_length=1, description="each compares all rows")
    train: list[str] = Field([], description="overrides of train.py for every run")
    seeds: Seeds = 3
    metrics: list[Metric] = Field(_METRICS, min_length=1, description="columns of the table")
    claims: list[OwnClaim] = Field([], description="statements on which a verdict is made")
    evaluate: list[str] = Field([], description="arguments of evaluate.py for each finished run")
    purpose: Name = "a grid of your own"
    notes: str = "Losses in nats per token, entropy in nats."

    @field_validator("train")
    @classmethod
    def _scale_is_an_argument(cls, train: list[str]) -> list[str]:
        for override in train:
            if override.startswith("scale="):
                raise ValueError(f"train: {override}: valid: on the command line, FILE.yaml {override}")
        return train


class OwnSettings(GridSettings):
    """Command-line settings of a user's grid."""

    @model_validator(mode="before")
    @classmethod
    def _train_at_the_scale(cls, values: dict[str, Any]) -> dict[str, Any]:
        """``train=`` need not name the scale."""
        train = values.get("train") or []
        if any(str(override).startswith("scale=") for override in train):
            return values
        return {**values, "train": [f"scale={values.get('scale', 'laptop')}", *train]}


class CompareSettings(OwnSettings):
    """Command-line settings of ``compare``."""

    models: Annotated[list[Name], Field(min_length=2)] = Field(
        description="options of model= to compare, the baseline first: gpt2,ssa_gpt2"
    )
    train: list[str] = Field(
        [], description="overrides of all runs: data=text,data.train=books/*.txt; empty: on Python's documentation"
    )
    sizes: list[Name] = Field([], description="options of model/size=, each a group of its own; empty: the scale's")


@dataclass(frozen=True)
class OwnExperiment(Experiment):
    """A user's grid, which has no folder in this package.

    Attributes:
        words: the arguments of ``python -m experiments`` that declare it.
        declared: the grid and its settings at each scale.
    """

    words: tuple[str, ...]
    declared: Declaration

    is_own = True

    @property
    def arguments(self) -> tuple[str, ...]:
        return self.words

    @property
    def where(self) -> str:
        return self.words[0]

    @property
    def settings(self) -> type[ExperimentSettings]:
        return CompareSettings if self.words[0] == COMPARE else OwnSettings

    @property
    def declaration(self) -> Declaration:
        return self.declared

    def results(self, output_dir: str) -> Path:
        return Path(output_dir) / "experiments" / self.name

    def references(self) -> list[dict[str, str]]:
        return []


def is_file(name: str) -> bool:
    """Whether an argument names a file rather than an experiment."""
    return name.endswith((".yaml", ".yml"))


def experiment_of_file(name: str) -> Experiment:
    """The grid that a YAML file declares, with the fields of `OwnGrid`.

    Raises:
        UserError: the file cannot be read, or does not declare one.
    """
    path = Path(name)
    try:
        own = OwnGrid.model_validate(read_yaml(path))
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}; valid: a YAML file with rows") from None
    except ValidationError as error:
        raise UserError(f"{name}: {one_line(error, OwnGrid)}") from None
    return OwnExperiment(path.stem, (name,), _declaration(own))


def comparison(models: Sequence[str], sizes: Sequence[str]) -> Experiment:
    """The grid of ``compare``: models in rows, sizes in groups."""
    rows = [GridRow(name=model, overrides=[f"model={model}"]) for model in models]
    groups = [GridGroup(name=size, overrides=[f"model/size={size}"]) for size in sizes]
    own = OwnGrid(rows=rows, groups=groups or [GridGroup(name=ONE_GROUP)], purpose="comparison of models")
    arguments = (COMPARE, f"models={','.join(models)}", *([f"sizes={','.join(sizes)}"] if sizes else []))
    more = {"models": list(models), "sizes": list(sizes)}
    return OwnExperiment("_".join((COMPARE, *models, *sizes)), arguments, _declaration(own, **more))


def _declaration(own: OwnGrid, **more: list[str]) -> Declaration:
    """Every scale has the same settings, but for the scale itself."""
    first = {"group": own.groups[0].name, "against": own.rows[0].name, "metric": own.metrics[0].name}
    claims = [{**first, **claim.model_dump(exclude_none=True)} for claim in own.claims]
    grid = {**own.model_dump(include={"rows", "groups", "metrics", "notes"}), "claims": claims}
    shared = {"seeds": own.seeds, "evaluate": own.evaluate, **more}
    scales = {scale: {**shared, "train": [f"scale={scale}", *own.train]} for scale in SCALES}
    return Declaration.model_validate({"purpose": own.purpose, "scales": scales, "grid": grid})
