"""Measure time and memory: ``python -m benchmarks [NAME] [to=FILE]``; the exit code is 1 if a goal is missed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.settings import Settings
from ssa.command_line.output import keep_writable
from ssa.command_line.settings import program
from ssa.errors import UserError
from ssa.files import check_writable, write_atomic, write_json

NAMES = {
    "step": "a training step, vanilla and SSA, beside other implementations",
    "attention": "attention and its statistics, beside maps materialized in Python",
    "loss": "loss and gradients over vocabularies of 2k, 50k and 128k",
    "text": "tokenizing and packing, beside the tokenizers library",
    "evaluation": "evaluation, beside lm-eval's own backend",
    "startup": "help, refusals and the first step, in processor time",
    "records": "2,000 run folders loaded as a table",
    "growth": "exponents of time and memory over length, width, layers, corpus and runs",
    "neighbors": "training beside another process that computes",
    "gpu": "GPT-2 124M on one CUDA GPU; only if named (benchmarks/gpu.sh)",
}


def main(arguments: list[str]) -> int:
    keep_writable()
    named = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    missed: list[str] = []
    code = program(
        Settings,
        partial(run, named or [name for name in NAMES if name != "gpu"], missed),
        name="-m benchmarks [NAME]",
        purpose="Measure time and memory; without a NAME, all of: " + ", ".join(NAMES) + ".",
        examples=("step", "loss to=/tmp/loss"),
        files={f"benchmarks/{name}.py": purpose for name, purpose in NAMES.items()},
        arguments=[argument for argument in arguments if argument not in named],
    )
    return code or bool(missed)


def run(names: list[str], missed: list[str], settings: Settings) -> None:
    """Runs benchmarks, prints their tables and fills ``missed`` with the figures below their goals."""
    for name in names:
        if name not in NAMES:
            raise UserError(f"{name}: no such benchmark; valid: {', '.join(NAMES)}")
    if importlib.util.find_spec("scipy") is None:
        raise UserError("python -m benchmarks needs scipy for its intervals: pip install -e '.[experiments]'")
    if settings.to:
        check_writable(Path(settings.to).absolute().parent, "to")
    from benchmarks.measure import Figure, machine, markdown  # imports torch

    results: dict[str, Any] = {"before": machine(), "benchmarks": {}}
    print(f"{results['before']}" if results["before"]["idle"] else f"the machine is busy: {results['before']}")
    pages = []
    for name in names:
        began = time.perf_counter()
        figures: list[Figure] = importlib.import_module(f"benchmarks.{name}").figures(settings)
        missed += [f"{name}: {figure.case}" for figure in figures if figure.reached is False]
        results["benchmarks"][name] = [asdict(figure) for figure in figures]
        pages.append(f"## {name}: {NAMES[name]}\n\n{markdown(figures)}")
        print(f"\n{pages[-1]}\n({time.perf_counter() - began:.0f} s)", flush=True)
        if settings.to:  # after each benchmark: an interruption loses one
            results["after"] = machine()
            write_json(Path(f"{settings.to}.json"), results)
            write_atomic(Path(f"{settings.to}.md"), "\n\n".join(pages) + "\n")
    for line in missed:
        print(f"goal missed: {line}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
