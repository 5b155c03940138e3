"""Parameters that each temperature rule adds, as Markdown tables: ``python -m ssa.report.parameters``."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import OmegaConf

from ssa.command_line.compose import composed
from ssa.command_line.conf_groups import options
from ssa.config import parse
from ssa.model.transformer import Transformer

BACKBONES = {  # size: backbone, vocabulary of the published model
    "124m": ("gpt2", 50257),
    "160m": ("pythia", 50304),
    "410m": ("pythia", 50304),
    "tinyllama-1.1b": ("llama", 32000),
}
REFERENCE = "124m"  # size at which the rules are compared


def model_of(size: str, rule: str) -> Transformer:
    """The model of a size in `BACKBONES` with a rule of ``model/temperature``, on the meta device."""
    backbone, vocab_size = BACKBONES[size]
    chosen = [f"model={backbone}", f"model/size={size}", f"model/temperature={rule}"]
    overrides = (*chosen, "init_from=ANY")  # start values of fine-tuning
    values: Any = OmegaConf.to_container(composed(*overrides), resolve=True)
    with torch.device("meta"):
        return Transformer(parse(values).model, vocab_size, seed=None)


def share_table() -> str:
    """SSA and SSA (own MLP), at each of `BACKBONES`."""
    rows = [["model", "parameters", "SSA (`ssa`)", "", "SSA (own MLP) (`ssa_mlp`)", ""]]
    for size, (backbone, _) in BACKBONES.items():
        counts = [model_of(size, rule).count_parameters() for rule in ("ssa", "ssa_mlp")]
        vanilla = counts[0]["total"] - counts[0]["temperature"]
        cells = [cell for count in counts for cell in _new(count["temperature"], vanilla)]
        rows.append([f"{backbone} {size}", f"{vanilla:,}", *cells])
    return _markdown(rows)


def rule_table() -> str:
    """All rules at size `REFERENCE`."""
    rows = [["rule", "scales", "new parameters", "", "starts at 1 in fine-tuning"]]
    for rule in options()["model/temperature"]:
        model = model_of(REFERENCE, rule)
        count, temperatures = model.count_parameters(), model.first_temperatures()
        starts = all(tau.starts_at_identity for tau in temperatures.values())
        new = _new(count["temperature"], count["total"] - count["temperature"])
        rows.append([f"`{rule}`", ", ".join(temperatures) or "nothing", *new, "yes" if starts else "no"])
    return _markdown(rows)


def _new(count: int, vanilla: int) -> list[str]:
    return [f"{count:,}", f"{count / vanilla:.4%}"]


def _markdown(rows: list[list[str]]) -> str:
    head, *body = rows
    lines = [head, ["---", *("--:" for _ in head[1:])], *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    print(share_table(), rule_table(), sep="\n\n")
