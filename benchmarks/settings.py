"""Settings of the benchmarks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ssa.config import PositiveInt, Section

Path = Annotated[str, Field(min_length=1)] | None


class Settings(Section):
    """Settings of the command line."""

    to: Path = Field(None, description="write FILE.json and FILE.md")
    nanogpt: Path = Field(None, description="nanoGPT's model.py, to measure it beside ours; default: a model like it")
    rounds: PositiveInt = Field(9, description="rounds of each comparison, after two to warm up")
