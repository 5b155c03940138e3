"""Compute a table or figure of the paper: ``python -m experiments ITEM scale=smoke|laptop|gpu|paper``."""

from __future__ import annotations

import importlib.util
import signal
import sys
import time
from functools import partial
from types import FrameType

from experiments.engine.grid import Settings as GridSettings
from experiments.engine.item import Item, ItemSettings, find, items
from ssa.command_line.settings import complain, program
from ssa.config import SCALES
from ssa.errors import UserError

INSTALL = "pip install -e '.[experiments]'"
USAGE = f"usage: python -m experiments ITEM scale={'|'.join(SCALES)} KEY=VALUE ...; ITEM --help lists the keys"


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    if not arguments or arguments[0] in ("--help", "-h"):
        width = max(len(item.name) for item in items())
        print("\n".join([USAGE, "", *(f"  {item.name:<{width}}  {item.purpose}" for item in items())]))
        return 0
    try:
        item = find(arguments[0])
        scale = next((text.removeprefix("scale=") for text in arguments if text.startswith("scale=")), "laptop")
        return program(
            item.settings,
            partial(run, item),
            name=f"-m experiments {item.name}",
            purpose=item.purpose,
            examples=("scale=smoke", "scale=laptop", "scale=laptop rerun=true to=/tmp/again"),
            arguments=arguments[1:],
            defaults=item.values(scale if scale in SCALES else "laptop"),
        )
    except UserError as error:
        return complain(error)


def run(item: Item, settings: ItemSettings) -> None:
    """Compute an item, write its results, and print what they come to."""
    lacking = [name for name in ("matplotlib", "scipy") if importlib.util.find_spec(name) is None]
    if lacking:
        raise UserError(f"{' and '.join(lacking)}: not installed; to install what experiments need, {INSTALL}")
    from rich.console import Console

    from experiments.engine.study import Study

    console, began = Console(highlight=False, soft_wrap=True), time.perf_counter()
    if isinstance(settings, GridSettings) and settings.plan:
        from experiments.engine.plan import show

        return show(item, settings, console)
    study = Study(item, settings, console)
    console.print(f"{item.name}, scale={settings.scale}: {item.purpose}")
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        item.run(settings, study)
        seconds = time.perf_counter() - began
        study.finish(seconds)
    except KeyboardInterrupt:
        console.print("Interrupted; what has finished is kept, and the same command goes on from there.")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        study.discard()
    if settings.scale == "smoke":
        console.print("scale=smoke tries the code; what it finds says nothing of the claim:")
    for conclusion in study.conclusions:
        console.print(conclusion.sentence, markup=False)
    console.print(f"{seconds:.0f} s; results: {study.folder}/{settings.scale}_*")
    if study.failed:
        raise UserError(study.failures)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM stops what Ctrl-C stops, and as cleanly."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
