"""Settings of ``report.py``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ssa.config import Section

Name = Annotated[str, Field(min_length=1)]


class ReportSettings(Section):
    """Where runs and results are read, and where the page is written."""

    runs: Name = Field("outputs", description="folder that contains run folders, at any depth")
    experiments: Name = Field("experiments", description="folder of experiments, each with its results/")
    to: Name = Field("outputs/report", description="folder for index.html")
    source: Name | None = Field(
        None, description="wandb:ENTITY/PROJECT: read runs from Weights & Biases instead of the folder"
    )
