"""Pretrained weights into a `Transformer`, in little more memory than they take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ssa.errors import UserError
from ssa.model.config import ModelConfig, TemperatureConfig
from ssa.model.temperature import upgraded_name
from ssa.model.transformer import Transformer
from ssa.pretrained.correspondence import Correspondence
from ssa.pretrained.source import Pretrained, check_architecture, check_rule, describe, weight_files
from ssa.pretrained.tensor_files import ITEM_BYTES, StoredTensor, contents

if TYPE_CHECKING:
    from ssa.text.tokenization import Tokenizer

_SHOWN = 3  # tensors of a kind in a message


def from_pretrained(init_from: str, temperature: TemperatureConfig | None = None, seed: int = 0) -> Transformer:
    """A pretrained model with temperatures.

    Args:
        init_from: a folder in Hugging Face's format, or an id of the Hub.
        temperature: the rule, with the start values of fine-tuning; default: the model's own if it
            has one, else none.
        seed: of temperatures that do not start at constants.

    Raises:
        UserError: it cannot be had, or does not fit.
    """
    model = describe(init_from).model
    if temperature is not None:
        model = replace(model, temperature=temperature.starting(pretrained=True))
    return load_pretrained(model, init_from, seed)


def load_pretrained(model: ModelConfig, init_from: str, seed: int) -> Transformer:
    """A pretrained model, in float32 on the CPU.

    Temperatures are as in a new `Transformer` of the same seed, or the file's if it is an export that has them.

    Args:
        model: the architecture, equal to the pretrained one, and the temperatures.
        init_from: a folder in Hugging Face's format, or an id of the Hub.
        seed: of temperatures that do not start at constants.

    Raises:
        UserError: it cannot be had, is damaged, or is of another architecture; or has other temperatures.
    """
    pretrained = describe(init_from)
    check_architecture(model, pretrained)
    check_rule(model, pretrained)
    with torch.device("meta"):
        transformer = Transformer(model, pretrained.model.vocab_size, seed=None)
    expected = _correspondences(transformer, pretrained)
    stored = _match(transformer, expected, pretrained)
    transformer.to_empty(device="cpu")
    transformer.tie_head()
    transformer.reset_temperatures(seed)
    ours = transformer.state_dict()
    for correspondence in expected:
        views = correspondence.views(ours[correspondence.ours])
        for name, view in zip(correspondence.theirs, views, strict=True):
            stored[name].copy_to(view)
    output = stored.get(pretrained.output_matrix)
    if model.tie_embeddings and output is not None and not output.equals(transformer.head.weight):
        raise UserError(
            f"init_from={init_from}: {output.name} is not the token embedding, although config.json says "
            "tie_word_embeddings=true; valid: false"
        )
    return transformer


def check_vocabulary(model: ModelConfig, tokenizer: Tokenizer, field: str = "data.tokenizer") -> None:
    """See that the embedding has a row for every token.

    Raises:
        UserError: it has not.
    """
    if model.vocab_size is not None and tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"{field}={tokenizer.name}: {tokenizer.vocab_size:,} tokens; "
            f"valid: up to model.vocab_size={model.vocab_size:,}, the rows of the embedding"
        )


def _correspondences(transformer: Transformer, pretrained: Pretrained) -> list[Correspondence]:
    """What to load: all but new temperatures."""
    if pretrained.family is not None:
        return pretrained.family.tensors(transformer.config)
    names = list(transformer.state_dict())
    if transformer.config.tie_embeddings:
        names.remove("head.weight")
    if not pretrained.has_temperatures:
        new = {*transformer.temperature_parameters(), "log_frequency"}
        names = [name for name in names if name not in new]
    return [Correspondence(name, (f"model.{name}",)) for name in names]


def _match(
    transformer: Transformer, expected: Sequence[Correspondence], pretrained: Pretrained
) -> dict[str, StoredTensor]:
    """The tensors in the files by the names that are expected of them.

    Raises:
        UserError: one is missing, of another shape, of a dtype that is not read, or left over.
    """
    ours = transformer.state_dict()
    shapes = {
        name: tuple(theirs.shape)
        for correspondence in expected
        for name, theirs in correspondence.to_theirs(ours[correspondence.ours]).items()
    }
    known = dict(shapes)
    if transformer.config.tie_embeddings:
        known[pretrained.output_matrix] = tuple(ours["head.weight"].shape)
    files = weight_files(pretrained.init_from)
    stored: dict[str, StoredTensor] = {}
    left_over: list[str] = []
    for tensor in contents(pretrained.init_from, files):
        name = upgraded_name(pretrained.renamed.get(tensor.name, tensor.name))
        name = name if name in known else pretrained.prefix + name
        if name in stored:
            left_over.append(f"{tensor.name} a second time")
        elif name in known:
            stored[name] = tensor
        elif not re.fullmatch(pretrained.leftovers, tensor.name.removeprefix(pretrained.prefix)):
            left_over.append(f"{tensor.name} {tensor.shape}")
    faults = {
        "missing": [f"{name} {shape}" for name, shape in shapes.items() if name not in stored],
        "of another shape": [
            f"{found.name} {found.shape} for {known[name]}"
            for name, found in stored.items()
            if found.shape != known[name]
        ],
        "left over": left_over,
        f"of a dtype that is not read ({', '.join(ITEM_BYTES)} are)": [
            f"{found.name} {found.dtype}" for found in stored.values() if found.dtype not in ITEM_BYTES
        ],
    }
    told = [f"{len(names)} {fault}: {_listed(names)}" for fault, names in faults.items() if names]
    if told:
        where = files[0].name if len(files) == 1 else f"its {len(files)} safetensors files"
        raise UserError(
            f"init_from={pretrained.init_from}: {where}: not the {len(shapes)} tensors of the "
            f"{pretrained.architecture} in config.json; {'; '.join(told)}"
        )
    return stored


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
