"""Export a trained model to Hugging Face's format: ``python export.py run=RUN_FOLDER to=FOLDER``; see ``--help``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from ssa.command_line.settings import program
from ssa.config import Section
from ssa.files import check_new_folder, expanded
from ssa.imports import preload
from ssa.record.run_model import load_run_config

Text = Annotated[str, Field(min_length=1)]
Kind = Annotated[
    Literal["auto", "ssa"],
    Field(
        description="auto: transformers' own class for models without temperatures, this project's code for "
        "others; ssa: this project's code for all"
    ),
]


class _Folders(Section):
    run: Text = Field(description="run folder, outputs/<experiment>/<run-id>; its best weights are used")
    to: Text = Field(description="folder to write; it must be new or empty")


fields: dict[str, Any] = {"as": (Kind, "auto")}  # a keyword, which a class body does not accept as a name
ExportSettings = create_model("ExportSettings", __base__=_Folders, **fields)


def export(settings: _Folders) -> None:
    """Write the folder; print its size and the code that loads it."""
    load_run_config(settings.run)
    check_new_folder(expanded(settings.to).resolve(), f"to={settings.to}")
    preload("ssa.export.folder")  # imports torch, which takes seconds
    from ssa.export import folder as writer
    from ssa.export.model_card import loading

    folder, own = writer.export(settings.run, settings.to, getattr(settings, "as"))
    size = sum(path.stat().st_size for path in folder.iterdir())
    if not (Path(settings.run) / "summary.json").exists():
        print(f"{settings.run} has not finished: exported its best weights so far")
    print(f"{folder}: {size / 1e6:.1f} MB", loading(str(folder), own), sep="\n")


if __name__ == "__main__":
    sys.exit(
        program(
            ExportSettings,
            export,
            name="export.py",
            purpose="Export a trained model in Hugging Face transformers format.",
            examples=("run=outputs/main/RUN_ID to=my-model", "run=outputs/main/RUN_ID to=my-model as=ssa"),
            files={
                "ssa/export/folder.py": "writes the folder",
                "ssa/pretrained/families.py": "parameter names of GPT-2, GPT-NeoX and Llama in transformers",
                "ssa/pretrained/remote/": "the model code that goes into the folder",
                "ssa/export/model_card.py": "its README",
            },
        )
    )
