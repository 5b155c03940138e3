"""What figure 2 is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from experiments.engine.experiment import TheorySettings
from ssa.config import PositiveFloat, PositiveInt

if TYPE_CHECKING:
    pass

Share = Annotated[float, Field(gt=0, lt=1)]
SomeRates = Annotated[list[PositiveFloat], Field(min_length=1)]
Decays = Annotated[list[PositiveFloat], Field(min_length=2)]


class NormSettings(TheorySettings):
    """Of the fit to given maps, and of the lookup.  The first of a list is the main one where one is."""

    tokens: Annotated[int, Field(ge=8)] = Field(description="fit: N, rows and columns of the target map")
    widths: Annotated[list[PositiveInt], Field(min_length=1)] = Field(
        description="fit: D of the embeddings, below N; the first for all spreads, the others for the main one"
    )
    mean_sharpness: PositiveFloat = Field(description="fit: mean over rows of s, targets of the family scaled")
    spread: PositiveFloat = Field(description="fit: the main one of the spreads")
    spreads: Annotated[list[Annotated[float, Field(ge=1)]], Field(min_length=1)] = Field(
        description="fit: largest over smallest sharpness, or group, of a target's rows"
    )
    levels: Annotated[list[Share], Field(min_length=1)] = Field(
        description="fit: where norms are compared, as shares of what vanilla explains at the weakest decay"
    )
    decays: Decays = Field(description="fit: strengths of the penalty on effective norms")
    weight_decays: Decays = Field(description="fit: strengths of the penalty on weights")
    fit_lr: PositiveFloat = Field(description="fit: Adam's learning rate")
    fit_steps: PositiveInt = Field(description="fit: optimizer steps")
    items: Annotated[int, Field(ge=2)] = Field(description="lookup: L, a power of 2")
    value_dim: PositiveInt = Field(description="lookup: m")
    shapes: Annotated[list[Annotated[str, Field(pattern=r"^\d+x\d+$")]], Field(min_length=1)] = Field(
        description="lookup: width x heads, 16x2 for example; all but the first at the first query_levels only"
    )
    query_levels: Annotated[list[Annotated[str, Field(pattern=r"^\d+-\d+$")]], Field(min_length=1)] = Field(
        description="lookup: levels of the nodes that queries name, 0-5 for example; level l is of 2^l items"
    )
    lookup_lrs: SomeRates = Field(description="lookup: Adam's learning rates, of which the best for vanilla counts")
    lookup_steps: PositiveInt = Field(description="lookup: optimizer steps")
    batch: PositiveInt = Field(description="lookup: contexts, each with one query, in a step")

    @model_validator(mode="after")
    def _a_target_can_be_drawn(self) -> Self:
        if self.spread not in self.spreads:
            raise ValueError(f"spread={self.spread:g}: valid: one of spreads, {', '.join(map(str, self.spreads))}")
        largest = min(64.0, (self.tokens / 8) ** 2)
        for spread in self.spreads:
            if spread > largest:
                raise ValueError(f"spreads={spread:g}: no groups of {self.tokens} tokens; valid: 1 to {largest:g}")
        for width in self.widths:
            if width >= self.tokens:
                raise ValueError(f"widths={width}: valid: less than tokens={self.tokens}")
        return self

    @model_validator(mode="after")
    def _a_tree_has_its_levels(self) -> Self:
        depth = self.items.bit_length() - 1
        if self.items != 1 << depth:
            raise ValueError(f"items={self.items}: valid: a power of 2, such as {1 << depth}")
        for levels in self.query_levels:
            low, high = map(int, levels.split("-"))
            if not low <= high <= depth:
                raise ValueError(f"query_levels={levels}: valid: LOW-HIGH from 0 to {depth} with items={self.items}")
        for shape in self.shapes:
            width, heads = map(int, shape.split("x"))
            if not heads or not width or width % heads:
                raise ValueError(f"shapes={shape}: valid: WIDTHxHEADS, where HEADS divides WIDTH")
        return self
