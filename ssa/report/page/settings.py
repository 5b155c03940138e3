"""What ``report.py`` can be told."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ssa.model.config import Section

Name = Annotated[str, Field(min_length=1)]


class ReportSettings(Section):
    """Where runs and results are read, and where the page is written."""

    runs: Name = Field("outputs", description="folder of runs, which may lie at any depth below it")
    experiments: Name = Field("experiments", description="folder of items, each with its results/")
    to: Name = Field("outputs/report", description="folder for index.html")
    source: Name | None = Field(
        None, description="wandb:ENTITY/PROJECT: runs from Weights & Biases in place of those of the folder"
    )
