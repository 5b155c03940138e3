"""Settings of figure 2."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from experiments.engine.experiment import TheorySettings
from ssa.config import PositiveFloat, PositiveInt

Share = Annotated[float, Field(gt=0, lt=1)]
SomeRates = Annotated[list[PositiveFloat], Field(min_length=1)]
Decays = Annotated[list[PositiveFloat], Field(min_length=2)]


class NormSettings(TheorySettings):
    """Settings of the fit to given maps and of the lookup.  The first value of a list is the main one."""

    tokens: Annotated[int, Field(ge=8)] = Field(description="fit: N, rows and columns of the target map")
    widths: Annotated[list[PositiveInt], Field(min_length=1)] = Field(
        description="fit: D of the embeddings, below N; the first with all spreads, the others with the main spread"
    )
    mean_sharpness: PositiveFloat = Field(description="fit: mean sharpness s over rows of scaled targets")
    spread: PositiveFloat = Field(description="fit: the main spread")
    spreads: Annotated[list[Annotated[float, Field(ge=1)]], Field(min_length=1)] = Field(
        description="fit: ratio of largest to smallest sharpness, or group size, among a target's rows"
    )
    levels: Annotated[list[Share], Field(min_length=1)] = Field(
        description="fit: levels of fit at which norms are compared, as shares of vanilla's at the weakest decay"
    )
    decays: Decays = Field(description="fit: strengths of the penalty on effective norms")
    weight_decays: Decays = Field(description="fit: strengths of the penalty on weights")
    fit_lr: PositiveFloat = Field(description="fit: Adam's learning rate")
    fit_steps: PositiveInt = Field(description="fit: optimizer steps")
    items: Annotated[int, Field(ge=2)] = Field(description="lookup: L, a power of 2")
    value_dim: PositiveInt = Field(description="lookup: m")
    shapes: Annotated[list[Annotated[str, Field(pattern=r"^\d+x\d+$")]], Field(min_length=1)] = Field(
        description="lookup: width x heads, such as 16x2; all but the first only with the first query_levels"
    )
    query_levels: Annotated[list[Annotated[str, Field(pattern=r"^\d+-\d+$")]], Field(min_length=1)] = Field(
        description="lookup: levels of the queried nodes, such as 0-5; level l has 2^l items"
    )
    lookup_lrs: SomeRates = Field(description="lookup: Adam's learning rates; results are at vanilla's best")
    lookup_steps: PositiveInt = Field(description="lookup: optimizer steps")
    batch: PositiveInt = Field(description="lookup: contexts per step, each with one query")

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
