"""Loading of pretrained weights into a `Transformer`, with little memory beyond the weights themselves."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ssa.errors import UserError
from ssa.model.config import ModelConfig, TemperatureConfig
from ssa.model.language_model import LanguageModel
from ssa.model.sharding import gathered, is_sharded, local_part, local_rows
from ssa.model.temperature import upgraded_name
from ssa.model.transformer import Transformer
from ssa.pretrained import causal_lm
from ssa.pretrained.families import Family, WeightMapping
from ssa.pretrained.source import (
    Pretrained,
    architecture,
    check_architecture,
    check_sizes,
    check_temperatures,
    describe,
    weight_files,
)
from ssa.pretrained.tensor_files import StoredTensor, stored_tensors
from ssa.pretrained.tensor_headers import DTYPE_BYTES, tensor_headers
from ssa.text.tokenization import Tokenizer, published_tokenizer

_SHOWN = 3  # tensors named per fault in an error message


def from_pretrained(
    init_from: str | Path, temperature: TemperatureConfig | None = None, seed: int = 0
) -> LanguageModel:
    """Load a pretrained model and add temperatures.

    Args:
        init_from: a Hugging Face model: a folder or a Hub id.
        temperature: the rule, with start values for fine-tuning; None: the model's own, if any.
        seed: for randomly initialized temperatures.

    Raises:
        UserError: the model is not available or does not fit; or ``init_from`` is no name, such as a model object.
    """
    if not isinstance(init_from, str | Path):
        raise UserError(
            f"init_from: a {type(init_from).__name__} object; valid: a folder, or a Hub id; "
            "ssa.adapt(model) adds temperatures to a model of transformers"
        )
    name = str(init_from)
    model = describe(name).model
    if temperature is not None:
        model = replace(model, temperature=temperature.starting(pretrained=True))
    return load_pretrained(model, name, seed)


def load_with_tokenizer(model: ModelConfig, init_from: str) -> tuple[LanguageModel, Tokenizer]:
    """`load_pretrained` in evaluation mode, and the model's own tokenizer.

    Raises:
        UserError: one is not available or damaged, or they do not fit.
    """
    tokenizer = published_tokenizer(init_from, field="init_from")
    check_vocabulary(model, tokenizer, field="init_from")
    return load_pretrained(model, init_from, seed=0).eval(), tokenizer


def load_pretrained(
    model: ModelConfig, init_from: str, seed: int, place: Callable[[Transformer], None] | None = None
) -> LanguageModel:
    """Load the weights of ``init_from``, a folder or Hub id, into its architecture, in float32.

    ``place``: allocates the tensors of a model on the meta device, perhaps sharded; by default on the CPU.  A process
    reads, and holds, only what it keeps, piece by piece; of a tensor that is stored transposed or interleaved, the
    whole, one at a time.

    Temperatures are those of a new `Transformer` with this seed, or those of the checkpoint if it has any.

    Raises:
        UserError: the model is not available, damaged, not finite, or has another architecture or other temperatures.
    """
    if model.hf_config is not None:
        return _of_transformers(model, init_from, seed)
    pretrained = describe(init_from)
    check_sizes(init_from, pretrained.format, architecture(pretrained.model))
    check_architecture(model, pretrained)
    check_temperatures(model, pretrained)
    with torch.device("meta"):
        transformer = Transformer(model, pretrained.model.vocab_size, seed=None)
    expected = _weight_mappings(transformer, pretrained)
    stored = _find_tensors(transformer, expected, pretrained)
    if place is None:
        transformer.to_empty(device="cpu")
    else:
        place(transformer)
    transformer.tie_head()
    transformer.reset_temperatures(seed)
    parameters = transformer.state_dict()
    not_finite: list[str] = []
    for mapping in expected:
        parameter = parameters[mapping.parameter]
        whole = torch.empty(parameter.shape, dtype=parameter.dtype) if is_sharded(parameter) else parameter
        rows = local_rows(parameter)
        views = zip(mapping.tensors, mapping.views(whole), mapping.views(_kept(whole, rows)), strict=True)
        not_finite += [stored[name].name for name, view, kept in views if not stored[name].copy_to(view, kept)]
        if whole is not parameter:
            local_part(parameter).copy_(whole[rows])
    if not_finite:
        raise UserError(f"init_from={init_from}: {len(not_finite)} not finite (NaN or infinity): {_listed(not_finite)}")
    head = stored.get(pretrained.format.head)
    weight = transformer.head.weight
    kept = _kept(weight, local_rows(weight))
    if model.tie_embeddings and head is not None and not head.equals(gathered(weight).cpu(), kept):
        raise UserError(
            f"init_from={init_from}: {head.name} differs from the token embedding, although config.json says "
            "tie_word_embeddings=true; valid: false"
        )
    return transformer


def without_weights(model: ModelConfig, vocab_size: int) -> LanguageModel:
    """A model whose weights are to be loaded."""
    if model.hf_config is None:
        return Transformer(model, vocab_size, seed=None)
    causal_lm.check_available("model=hf")
    from ssa.adapter import hf_model  # imports transformers

    return hf_model.without_weights(model)


def _of_transformers(model: ModelConfig, init_from: str, seed: int) -> LanguageModel:
    pretrained = describe(init_from, hf=True)
    check_architecture(model, pretrained)
    files = weight_files(init_from)
    stored = sum(
        math.prod(one.shape) for file in files for one in tensor_headers(file, f"init_from={init_from}: {file.name}")
    )
    from ssa.adapter import hf_model  # imports transformers

    if (needed := hf_model.count_weights(model)) > stored:
        where = files[0].name if len(files) == 1 else f"its {len(files)} safetensors files"
        raise UserError(
            f"init_from={init_from}: config.json: a {pretrained.format.model_type} of these sizes has {needed:,} "
            f"parameters; {where} holds {stored:,}"
        )
    return hf_model.load(model, files[0].parent, seed, f"init_from={init_from}")


def _kept(parameter: Tensor, rows: slice) -> Tensor:
    """Whether each element of a parameter lies in some rows.  Shape: the parameter's, without memory of its own."""
    kept = torch.zeros(len(parameter), dtype=torch.bool)
    kept[rows] = True
    return kept.view(-1, *[1] * (parameter.ndim - 1)).expand(parameter.shape)


def check_vocabulary(model: ModelConfig, tokenizer: Tokenizer, field: str = "data.tokenizer") -> None:
    """Refuse a tokenizer with more tokens than the embedding has rows."""
    if model.vocab_size is not None and tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"{field}={tokenizer.name}: {tokenizer.vocab_size:,} tokens; "
            f"valid: up to model.vocab_size={model.vocab_size:,}, the rows of the embedding"
        )


def _weight_mappings(transformer: Transformer, pretrained: Pretrained) -> list[WeightMapping]:
    """Mappings of the weights to load: all but new temperatures."""
    if isinstance(pretrained.format, Family):
        return pretrained.format.weight_mappings(transformer.config)
    names = list(transformer.state_dict())
    if transformer.config.tie_embeddings:
        names.remove("head.weight")
    if not pretrained.has_temperatures:
        names = [name for name in names if name not in transformer.temperature_state()]
    return [WeightMapping(name, (f"model.{name}",)) for name in names]


def _find_tensors(
    transformer: Transformer, expected: Sequence[WeightMapping], pretrained: Pretrained
) -> dict[str, StoredTensor]:
    """The stored tensors by expected name, checked for names, shapes and dtypes."""
    parameters = transformer.state_dict()
    tensors = [mapping.to_tensors(parameters[mapping.parameter]) for mapping in expected]
    shapes = {name: tuple(tensor.shape) for some in tensors for name, tensor in some.items()}
    known, stored_as = dict(shapes), pretrained.format
    if transformer.config.tie_embeddings:
        known[stored_as.head] = tuple(parameters["head.weight"].shape)
    files = weight_files(pretrained.init_from)
    stored: dict[str, StoredTensor] = {}
    unexpected: list[str] = []
    for tensor in stored_tensors(pretrained.init_from, files):
        name = upgraded_name(stored_as.tensor_aliases.get(tensor.name, tensor.name))
        name = name if name in known else stored_as.prefix + name
        if name in stored:
            unexpected.append(f"{tensor.name} (duplicate)")
        elif name in known:
            stored[name] = tensor
        elif not re.fullmatch(stored_as.ignored_tensors, tensor.name.removeprefix(stored_as.prefix)):
            unexpected.append(f"{tensor.name} {tensor.shape}")
    faults = {
        "missing": [f"{name} {shape}" for name, shape in shapes.items() if name not in stored],
        "with the wrong shape": [
            f"{found.name} {found.shape}, expected {known[name]}"
            for name, found in stored.items()
            if found.shape != known[name]
        ],
        "unexpected": unexpected,
        f"with an unsupported dtype (supported: {', '.join(DTYPE_BYTES)})": [
            f"{found.name} {found.dtype}" for found in stored.values() if found.dtype not in DTYPE_BYTES
        ],
    }
    messages = [f"{len(names)} {fault}: {_listed(names)}" for fault, names in faults.items() if names]
    if messages:
        where = files[0].name if len(files) == 1 else f"its {len(files)} safetensors files"
        raise UserError(
            f"init_from={pretrained.init_from}: {where}: expected the {len(shapes)} tensors of the "
            f"{stored_as.architecture} in config.json; {'; '.join(messages)}"
        )
    return stored


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
