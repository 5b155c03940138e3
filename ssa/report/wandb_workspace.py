"""A saved view of a W&B project: ``python -m ssa.report.wandb_workspace source=wandb:ENTITY/PROJECT``.

Seeds are averaged: runs are grouped by their W&B group.  Panels, over tokens, show the keys of `ssa.record.wandb_names`
and the maps of `ssa.record.wandb_pictures`.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Annotated

from pydantic import Field

from ssa.command_line.settings import program
from ssa.config import Section
from ssa.errors import UserError, first_line
from ssa.paths import install
from ssa.record.wandb_pictures import KEYS as MAPS
from ssa.record.wandb_runs import check_access, project_of

SECTIONS = {  # name: the keys of its panels, one panel each
    "loss": ["train/loss", "val/loss", "val/perplexity", "val/bits_per_byte"],
    "attention": ["attention/entropy", "attention/entropy_normalized", "attention/spikiness"],
    "temperature": ["temperature/query", "temperature/value", "temperature/position", "temperature/token"],
}


class WorkspaceSettings(Section):
    """The project."""

    source: Annotated[str, Field(description="wandb:ENTITY/PROJECT, which has runs")]
    name: Annotated[str, Field(min_length=1, description="of the view; each call saves a new one")] = "SSA"


def save(settings: WorkspaceSettings) -> None:
    """Save the view, and print its address.

    Raises:
        UserError: the source is misspelled, there is no API key, W&B refuses, or its library is not installed.
    """
    entity, project = project_of(settings.source).split("/")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError(f"source={settings.source}: a view needs the library wandb-workspaces: {install('workspace')}")
    try:
        check_access()
        print(_save(entity, project, settings.name))
    except Exception as error:  # of W&B, of sockets, or of its service
        raise UserError(f"source={settings.source}: {first_line(error)}") from None


def _save(entity: str, project: str, name: str) -> str:
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports.v2 import LinePlot, MediaBrowser

    sections = []
    for section, keys in SECTIONS.items():
        panels = [LinePlot(x="tokens", y=[key], groupby_aggfunc="mean", groupby_rangefunc="stddev") for key in keys]
        maps = [MediaBrowser(media_keys=[key]) for kind, key in MAPS.items() if kind == section]
        sections.append(workspaces.Section(name=section, panels=[*panels, *maps], is_open=True))
    view = workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis="tokens", group_by_prefix="first"),
        runset_settings=workspaces.RunsetSettings(groupby=[workspaces.Metric("Group")]),
    )
    return str(view.save().url)


if __name__ == "__main__":
    sys.exit(
        program(
            WorkspaceSettings,
            save,
            name="-m ssa.report.wandb_workspace",
            purpose="Save a view of a W&B project: seeds averaged; loss, attention and temperatures over tokens.",
            examples=("source=wandb:ENTITY/ssa",),
        )
    )
