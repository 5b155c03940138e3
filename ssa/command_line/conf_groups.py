"""The config groups in ``conf/``, read from the folder, and the help page of train.py."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ssa.command_line.settings import closing_sections
from ssa.errors import UserError

CONF = Path(__file__).resolve().parents[2] / "conf"
FLAGS = {
    "--help, -h": "this page",
    "--multirun, -m": "run every combination of comma-separated values: -m model=gpt2,ssa_gpt2 seed=0,1,2",
    "--cfg job --resolve": "print the composed config, with all keys, and exit",
}


def options() -> dict[str, dict[str, str]]:
    """Group -> option -> one-line description: the first comment of its file, except ``# @`` directives.

    Files named ``_*`` are shared settings for other files to build on, not options.
    """
    groups: dict[str, dict[str, str]] = {}
    for file in sorted(CONF.rglob("*.yaml")):
        if file.parent != CONF and not file.name.startswith("_"):
            groups.setdefault(file.parent.relative_to(CONF).as_posix(), {})[file.stem] = _description(file)
    return groups


def backbone(fields: Mapping[str, Any]) -> list[Any]:
    """The fields of a model that differ between GPT-2, GPT-NeoX and Llama."""
    return [fields.get(field) for field in ("positions", "norm", "gated_mlp")]


def models_with(wanted: list[Any]) -> list[str]:
    """The options of ``model=`` with a backbone."""
    return [name for name in options()["model"] if backbone(dict(_entries(name))) == wanted]


def check_size(model: Mapping[str, Any], size: str) -> None:
    """Refuse a published model's size with another backbone, whose parameter count and rotation would differ.

    Raises:
        UserError: the description of the size names an option of ``model=`` with another backbone.
    """
    sizes = options()["model/size"]
    if owner := re.search(r"\(model=(\w+) only\)", sizes.get(size, "")):
        needed = backbone(dict(_entries(owner[1])))
        if backbone(model) != needed:
            only = " or ".join(f"model={name}" for name in models_with(needed))
            valid = ", ".join(name for name, text in sizes.items() if " only)" not in text)
            raise UserError(f"model/size={size}: only with {only}; valid with model={model['name']}: {valid}")


def _entries(option: str) -> Iterator[tuple[str, Any]]:
    """The settings of ``model=OPTION``, after those it inherits."""
    content = yaml.safe_load((CONF / "model" / f"{option}.yaml").read_text(encoding="utf-8"))
    for parent in content.pop("defaults", []):
        if isinstance(parent, str) and parent != "_self_":
            yield from _entries(parent)
    yield from content.items()


def help_text(program: str, purpose: str) -> str:
    """The page printed by ``--help``."""
    defaults = _defaults()
    lines = [purpose, "", f"usage: python {program} [GROUP=OPTION ...] [KEY=VALUE ...] [FLAG ...]", ""]
    for group, choices in options().items():
        lines.append(f"{group}=  (default: {defaults.get(group, 'set by model= or scale=')})")
        lines += [f"  {name:<22} {text}" for name, text in choices.items()]
    lines += ["", "flags", *(f"  {flag:<22} {text}" for flag, text in FLAGS.items())]
    examples = (
        "model=ssa_gpt2 data=wikitext",
        "model=gpt2 scale=smoke logger=none",
        "scale=gpu model/size=micro trainer.steps=500",
        "model/temperature=ssa model.temperature.value=null",
        "-m model=gpt2,ssa_gpt2 seed=0,1,2",
        "model=ssa_llama init_from=HuggingFaceTB/SmolLM2-135M optim.train=temperature",
        "resume=outputs/main/RUN_ID",
    )
    files = {
        "conf/config.yaml": "the default run",
        "conf/": "GROUP/OPTION.yaml: the options above",
        "ssa/config.py": "all keys with their types and valid values",
        "ssa/model/": "the transformer, attention and its temperatures",
        "ssa/text/": "corpora, tokenizers, the token cache, batches",
        "ssa/training/": "the training loop, optimizer and learning-rate schedule",
        "ssa/pretrained/": "init_from=: weights from the Hugging Face Hub",
        "ssa/record/": "run folders, checkpoints, metrics, Weights & Biases",
        "ssa/launch/": "hydra/launcher=: runs on a cluster",
    }
    return "\n".join([*lines, *closing_sections(program, examples, files)])


def _defaults() -> dict[str, Any]:
    entries = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))["defaults"]
    return {
        group: "none" if option is None else option
        for entry in entries
        if isinstance(entry, dict)
        for group, option in entry.items()
    }


def _description(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.startswith("#"):
                break
            if not line.startswith("# @"):
                return line.lstrip("# ").rstrip()
    return ""
