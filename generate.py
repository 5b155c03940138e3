"""Continue a text with a trained model: ``python generate.py run=RUN_FOLDER prompt="..."``; see ``--help``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ssa.command_line.settings import program
from ssa.config import PositiveFloat, Section
from ssa.errors import UserError
from ssa.model.config import Projection

Text = Annotated[str, Field(min_length=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class GenerateSettings(Section):
    """What the command line sets."""

    run: Text = Field(description="the folder of a run, outputs/<experiment>/<run-id>; its best weights are used")
    prompt: str = Field(description="the text to continue, taken as it is; an end-of-text goes before, as in training")
    max_new_tokens: NonNegativeInt = Field(64, description="tokens to add; 0: only look at the prompt")
    temperature: PositiveFloat = Field(
        0.8, description="the sampling temperature, which divides the logits; not the inverse temperature of attention"
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="sample from the likeliest tokens of this mass")
    greedy: bool = Field(False, description="take the likeliest token instead of sampling")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of the sampling")
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    show: Literal["none", "temperature"] = Field(
        "none", description="temperature: then print each token colored by its learned (inverse) temperature"
    )
    of: Projection = Field("query", description="whose temperature to show")
    layer: NonNegativeInt | None = Field(None, description="show this layer, from 0; null: the mean over all")
    head: NonNegativeInt | None = Field(None, description="show this head, from 0; null: the mean over all")
    html: Text | None = Field(None, description="a file for the same as a web page")
    png: Text | None = Field(None, description="a file for the same as a picture; needs matplotlib")
    svg: Text | None = Field(None, description="likewise, to be enlarged at will")

    @property
    def shows_temperatures(self) -> bool:
        """Whether anywhere."""
        return self.show == "temperature" or bool(self.html or self.png or self.svg)


def generate(settings: GenerateSettings) -> None:
    """Print the continuation as it comes, then show the temperatures that are asked for."""
    from rich.console import Console

    from ssa.record.run_model import continue_text, load_run, load_run_config
    from ssa.viz.temperature_map import CONTROLS, check_choice, print_view, view_tokens
    from ssa.viz.temperature_map_files import check_files, write_html, write_picture

    unread = [key for key in ("of", "layer", "head") if key in settings.model_fields_set]
    if unread and not settings.shows_temperatures:
        raise UserError(
            f"{unread[0]}={getattr(settings, unread[0])}: needs show=temperature, html=FILE, png=FILE or svg=FILE"
        )
    config = load_run_config(settings.run)
    if settings.shows_temperatures:
        check_choice(config.model, settings.of, settings.layer, settings.head)
        check_files(html=settings.html, png=settings.png, svg=settings.svg)
    from ssa.device import resolve_device  # only now: importing torch takes seconds, and a mistake must not

    device = resolve_device(settings.device, field="device")
    _, model, tokenizer = load_run(settings.run)
    sampling = settings.model_dump(include={"temperature", "top_p", "greedy", "seed"})
    unsafe = {code: glyph for code, glyph in CONTROLS.items() if chr(code) not in "\n\t"}  # a terminal would obey

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
            purpose="Continue a text with a trained model, and show the learned temperature of each token.",
            examples=(
                'run=outputs/main/RUN_ID prompt="The garden"',
                'run=outputs/main/RUN_ID prompt="The garden" greedy=true show=temperature',
                'run=outputs/main/RUN_ID prompt="The garden" max_new_tokens=0 of=value layer=2 html=value.html',
            ),
        )
    )
