"""Export a model to Hugging Face's format: ``python export.py run=RUN_FOLDER to=FOLDER``; see ``--help``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, create_model, model_validator

from ssa.command_line.settings import program
from ssa.config import Section
from ssa.export.base_model import with_temperatures
from ssa.files import check_new_folder, expanded
from ssa.imports import preload
from ssa.record.run_model import load_run_config

Text = Annotated[str, Field(min_length=1)]
Kind = Annotated[
    Literal["auto", "ssa", "full"],
    Field(
        description="auto: transformers' own class for models without temperatures, this project's code for "
        "others, of model=hf the temperatures alone if nothing else was trained; ssa: this project's code for all; "
        "full: of model=hf, base and temperatures"
    ),
]
Rule = Annotated[
    Text | None,
    Field(description="with init_from: temperatures to add, at their start values; null: those it has, if any"),
]


class _Folders(Section):
    run: Text | None = Field(None, description="run folder, outputs/<experiment>/<run-id>; its best weights are used")
    init_from: Text | None = Field(None, description="or a pretrained model: Hub id or folder")
    to: Text = Field(description="folder to write; it must be new or empty")
    dtype: Literal["float32", "bf16"] = Field(
        "float32", description="of the stored weights; temperatures are float32 in any case"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.run is None) == (self.init_from is None):
            raise ValueError("run, init_from: set exactly one: run=RUN_FOLDER, or init_from=HUB_ID_OR_FOLDER")
        rule = getattr(self, "model/temperature")
        if self.run is not None and rule is not None:
            raise ValueError(f"model/temperature={rule}: a run has its own temperatures; valid with init_from")
        return self


# Keywords and a slash, which a class body does not accept as names
fields: dict[str, Any] = {"as": (Kind, "auto"), "model/temperature": (Rule, None)}
ExportSettings = create_model("ExportSettings", __base__=_Folders, **fields)


def export(settings: _Folders) -> None:
    """Write the folder; print its size and the code that loads it."""
    if settings.init_from is not None:
        model = with_temperatures(settings.init_from, getattr(settings, "model/temperature"))
    else:
        load_run_config(str(settings.run))
    check_new_folder(expanded(settings.to).resolve(), f"to={settings.to}")
    preload("ssa.export.folder")  # imports torch, which takes seconds
    from ssa.export import folder as writer
    from ssa.export.model_card import loading, loading_temperatures

    form = getattr(settings, "as"), settings.dtype
    if settings.init_from is not None:
        folder, own = writer.export_pretrained(model, settings.init_from, settings.to, *form)
    else:
        folder, own = writer.export(str(settings.run), settings.to, *form)
        if not (Path(str(settings.run)) / "summary.json").exists():
            print(f"{settings.run} has not finished: exported its best weights so far")
    size = sum(path.stat().st_size for path in folder.iterdir())
    alone = not (folder / "config.json").exists()
    base = str(settings.init_from or load_run_config(str(settings.run)).init_from)
    code = loading_temperatures(str(folder), base) if alone else loading(str(folder), own)
    print(f"{folder}: {size / 1e6:.1f} MB", code, sep="\n")


if __name__ == "__main__":
    sys.exit(
        program(
            ExportSettings,
            export,
            name="export.py",
            purpose="Export a trained or pretrained model in Hugging Face transformers format.",
            examples=(
                "run=outputs/main/RUN_ID to=my-model",
                "run=outputs/main/RUN_ID to=my-model as=ssa dtype=bf16",
                "init_from=HuggingFaceTB/SmolLM2-135M model/temperature=ssa to=my-model",
            ),
            files={
                "ssa/export/folder.py": "writes the folder",
                "ssa/export/base_model.py": "temperatures that are added without training",
                "ssa/pretrained/families.py": "parameter names of GPT-2, GPT-NeoX and Llama in transformers",
                "ssa/pretrained/remote/": "the model code that goes into the folder",
                "ssa/export/model_card.py": "its README",
            },
        )
    )
