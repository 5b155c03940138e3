"""Generate text with a model: ``python generate.py run=RUN_FOLDER prompt="..."``; see ``--help``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from rich.console import Console

from ssa.command_line.settings import program
from ssa.config import PositiveFloat, Section
from ssa.errors import UserError
from ssa.model.config import Projection
from ssa.pretrained.source import describe
from ssa.pretrained.special_tokens import BEGIN, END, special_token
from ssa.record.run_model import continue_text, load_run, load_run_config
from ssa.viz.temperature_map import CONTROLS, check_choice, print_view, view_tokens
from ssa.viz.temperature_map_files import check_files, write_html, write_picture

Text = Annotated[str, Field(min_length=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class GenerateSettings(Section):
    """Settings of the command line."""

    run: Text | None = Field(None, description="run folder, outputs/<experiment>/<run-id>; its best weights are used")
    init_from: Text | None = Field(None, description="or an export or pretrained model: folder or Hub id")
    prompt: str = Field(
        description="text to continue, preceded by an end-of-text token as in training; with init_from by the "
        "tokenizer's bos_token, else eos_token"
    )
    max_new_tokens: NonNegativeInt = Field(64, description="maximum number of new tokens; 0: show the prompt only")
    temperature: PositiveFloat = Field(
        0.8, description="sampling temperature, which divides the logits; not the inverse temperature of attention"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="nucleus sampling: probability mass to keep")
    greedy: bool = Field(False, description="always choose the most likely token")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="sampling seed")
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    show: Literal["none", "temperature"] = Field(
        "none", description="temperature: print each token, colored by its learned (inverse) temperature"
    )
    of: Projection = Field("query", description="which temperature to show")
    layer: NonNegativeInt | None = Field(None, description="layer to show, from 0; null: mean over layers")
    head: NonNegativeInt | None = Field(None, description="head to show, from 0; null: mean over heads")
    html: Text | None = Field(None, description="write the colored tokens to this web page")
    png: Text | None = Field(None, description="write them to this PNG image; needs matplotlib")
    svg: Text | None = Field(None, description="write them to this SVG image; needs matplotlib")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.run is None) == (self.init_from is None):
            raise ValueError("run, init_from: set exactly one: run=RUN_FOLDER, or init_from=FOLDER_OR_HUB_ID")
        return self

    @property
    def shows_temperatures(self) -> bool:
        """Whether temperatures are printed or written to a file."""
        return self.show == "temperature" or bool(self.html or self.png or self.svg)


def generate(settings: GenerateSettings) -> None:
    """Print the continuation token by token, then show temperatures."""
    unread = [key for key in ("of", "layer", "head") if key in settings.model_fields_set]
    if unread and not settings.shows_temperatures:
        raise UserError(
            f"{unread[0]}={getattr(settings, unread[0])}: needs show=temperature, html=FILE, png=FILE or svg=FILE"
        )
    run, init_from = str(settings.run), settings.init_from
    config = load_run_config(run).model if init_from is None else describe(init_from).model
    if settings.shows_temperatures:
        check_choice(config, settings.of, settings.layer, settings.head)
        check_files(html=settings.html, png=settings.png, svg=settings.svg)
    from ssa.device import resolve_device  # imports torch, which takes seconds

    device = resolve_device(settings.device, field="device")
    sampling = settings.model_dump(include={"temperature", "top_p", "greedy", "seed"})
    if init_from is None:
        _, model, tokenizer = load_run(run)
    else:
        from ssa.pretrained.load import load_with_tokenizer

        model, tokenizer = load_with_tokenizer(config, init_from)
        sampling["begin"] = special_token(init_from, tokenizer, BEGIN)
        sampling["end"] = special_token(init_from, tokenizer, END)
    unsafe = {code: glyph for code, glyph in CONTROLS.items() if chr(code) not in "\n\t"}  # terminals obey these

    def write(text: str) -> None:
        print(text.translate(unsafe), end="", flush=True)

    ids = continue_text(model.to(device), tokenizer, settings.prompt, settings.max_new_tokens, write, **sampling)
    print()
    if not settings.shows_temperatures:
        return
    view = view_tokens(model, tokenizer.decode, ids, settings.of, settings.layer, settings.head)
    if settings.show == "temperature":
        print()
        print_view(Console(), view)
    writers = ((settings.html, write_html), (settings.png, write_picture), (settings.svg, write_picture))
    for name, write_file in writers:
        if name is not None:
            write_file(view, Path(name))
            print(name)


if __name__ == "__main__":
    sys.exit(
        program(
            GenerateSettings,
            generate,
            name="generate.py",
            purpose="Generate text from a prompt with a model and show the learned temperature of each token.",
            examples=(
                'run=outputs/main/RUN_ID prompt="The garden"',
                'run=outputs/main/RUN_ID prompt="The garden" greedy=true show=temperature',
                'run=outputs/main/RUN_ID prompt="The garden" max_new_tokens=0 of=value layer=2 html=value.html',
                'init_from=my-model prompt="The garden"',
            ),
            files={
                "generate.py": "the keys above",
                "ssa/model/generation.py": "sampling with a key-value cache",
                "ssa/viz/temperature_map.py": "the colored tokens; temperature_map_files.py: HTML, PNG, SVG",
                "ssa/record/run_model.py": "loads the model and tokenizer of a run",
                "ssa/pretrained/load.py": "loads those of an export or a pretrained model",
            },
        )
    )
