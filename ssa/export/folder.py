"""Export of a model as a Hugging Face folder, written atomically.  Writing does not need transformers.

Models without temperatures are written for the transformers class of their architecture; models with temperatures in
this project's own format, together with their source code (`ssa.pretrained.remote_code`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ssa.errors import UserError
from ssa.export.model_card import model_card, pretrained_card
from ssa.files import check_new_folder, expanded, replacing, writing
from ssa.model.config import ModelConfig
from ssa.model.language_model import LanguageModel
from ssa.model.transformer import Transformer
from ssa.pretrained.base_files import base_files
from ssa.pretrained.families import FAMILIES, Family
from ssa.pretrained.load import load_with_tokenizer
from ssa.pretrained.remote.aliases import aliases
from ssa.pretrained.remote_code import ARCHITECTURE, AUTO_MAP, MODEL_TYPE, remote_code
from ssa.pretrained.source import architecture, temperature_files
from ssa.record.run_model import load_run
from ssa.text.tokenization import Tokenizer

Kind = Literal["auto", "ssa", "full"]
Dtype = Literal["float32", "bf16"]

_ADDS_TOKENS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")
_DTYPES = {"float32": "float32", "bf16": "bfloat16"}  # names in config.json
_FLOAT32 = {"temperature", "log_frequency"}  # in bf16 too, as when the class loads
_UNUSED = dict.fromkeys(("rotary_fraction", "rope_theta", "rope_scaling"))  # with learned positions


def export(run: str | Path, to: str | Path, kind: Kind = "auto", dtype: Dtype = "float32") -> tuple[Path, bool]:
    """Export the best model of a run, with its tokenizer.

    Args:
        run: the run folder.
        to: the new folder; it may exist if it is empty.
        kind: ``ssa``: use this project's own class even if transformers has one; ``full``, of a run with
            ``model=hf``: the base too, even if the temperatures alone were trained.
        dtype: of the stored weights; temperatures are float32.

    Returns:
        The folder, and whether this project's own class was used.

    Raises:
        UserError: `to` is not empty or cannot be written, `run` has no model (see `load_run`), or the model does not
            fit `kind`.
    """
    target = expanded(to).resolve()
    check_new_folder(target, f"to={target}")
    config, model, tokenizer = load_run(run)
    base = config.init_from if config.data.tokenizer == config.init_from else None

    def card(own: bool) -> str:
        return model_card(config, Path(run), target.name, own)

    alone = kind == "auto" and config.optim.train == "temperature" and not temperature_files(str(config.init_from))
    return target, _export(target, model, tokenizer, base, card, kind, dtype, config.init_from if alone else None)


def export_pretrained(
    model: ModelConfig, init_from: str, to: str | Path, kind: Kind = "auto", dtype: Dtype = "float32"
) -> tuple[Path, bool]:
    """Export a pretrained model, perhaps with new temperatures, with its tokenizer.

    Args:
        model: its architecture, and the temperatures, see `ssa.export.base_model`.
        init_from: a Hugging Face model: a folder or a Hub id.
        to, kind, dtype: as in `export`, which also says what is returned.

    Raises:
        UserError: `to` is not empty or cannot be written, the model or its tokenizer is not available or damaged, or
            the model does not fit `kind`.
    """
    target = expanded(to).resolve()
    check_new_folder(target, f"to={target}")
    loaded, tokenizer = load_with_tokenizer(model, init_from)

    def card(own: bool) -> str:
        return pretrained_card(model, init_from, target.name, own)

    alone = kind == "auto" and bool(model.temperature.scaled) and not temperature_files(init_from)
    return target, _export(target, loaded, tokenizer, init_from, card, kind, dtype, init_from if alone else None)


def _export(
    target: Path,
    model: LanguageModel,
    tokenizer: Tokenizer,
    base: str | None,
    card: Callable[[bool], str],
    kind: Kind,
    dtype: Dtype,
    kept_base: str | None,
) -> bool:
    """Write the folder; returns whether loading it takes code in the folder.

    ``base``: the pretrained model that the tokenizer is from; ``card``: the README for the own class, or another;
    ``kept_base``: the model of which the temperatures alone are new.
    """
    if not isinstance(model, Transformer):
        return _export_adapted(target, model, tokenizer, base, card, kind, dtype, kept_base)
    if kind == "full":
        raise UserError("as=full: of a model with model=hf; valid here: auto, ssa")
    own = kind == "ssa" or bool(model.config.temperature.scaled)
    end = {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text}
    described, tensors = _own(model) if own else _stock(model)
    texts_of_tokenizer, ids = _tokenizer_texts(base, tokenizer, model)
    ids = ids or end
    texts = {
        "config.json": _json({**described, **ids, "dtype": _DTYPES[dtype], "torch_dtype": _DTYPES[dtype]}),
        "generation_config.json": _json({**end, "pad_token_id": tokenizer.end_of_text}),
        **texts_of_tokenizer,
        "README.md": card(own),
        **(remote_code() if own else {}),
    }
    _write(target, texts, tensors if dtype == "float32" else {name: _rounded(name, tensors[name]) for name in tensors})
    return own


def _export_adapted(
    target: Path,
    model: LanguageModel,
    tokenizer: Tokenizer,
    base: str | None,
    card: Callable[[bool], str],
    kind: Kind,
    dtype: Dtype,
    kept_base: str | None,
) -> bool:
    """The same of a model of transformers: its temperatures alone if nothing else was trained, else all of it."""
    from ssa.adapter.hf_model import HFModel  # imports transformers
    from ssa.export.adapted import export_temperatures, export_whole

    assert isinstance(model, HFModel)
    if kind == "ssa":
        raise UserError(f"as=ssa: this project's own class is no {type(model.inner).__name__}; valid: auto, full")
    if kept_base is not None:
        if dtype != "float32":
            raise UserError(f"dtype={dtype}: temperatures alone are float32; valid: float32, or as=full")
        export_temperatures(target, model, kept_base)
        return False
    own = bool(model.config.temperature.scaled)
    texts, _ = _tokenizer_texts(base, tokenizer, model)
    export_whole(target, model, {**texts, "README.md": card(own)}, getattr(torch, _DTYPES[dtype]))
    return own


def _tokenizer_texts(base: str | None, tokenizer: Tokenizer, model: LanguageModel) -> tuple[dict[str, str], Any]:
    """The tokenizer's files, of the pretrained model if it is from one; and the special ids in that one's config."""
    theirs = _base_files(base, tokenizer) if base is not None else {}
    ids = theirs.pop("config.json", None)
    if not theirs:
        return tokenizer_files(tokenizer, model.config.max_positions), ids
    return {name: text if isinstance(text, str) else _json(text) for name, text in theirs.items()}, ids


def tokenizer_files(tokenizer: Tokenizer, length: int) -> dict[str, str]:
    """Files for AutoTokenizer that give the ids of training, adding no tokens; ``length`` is the maximum context."""
    definition = json.loads(tokenizer.definition)
    definition["post_processor"] = _without_added_tokens(definition["post_processor"])
    end = next(token["content"] for token in definition["added_tokens"] if token["id"] == tokenizer.end_of_text)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    return {"tokenizer.json": _json(definition), "tokenizer_config.json": _json(settings)}


def _rounded(name: str, tensor: Tensor) -> Tensor:
    return tensor if _FLOAT32 & set(name.split(".")) else tensor.bfloat16()


def _base_files(base: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """Settings of a pretrained model with its special tokens and templates."""
    try:
        kept, left_out = base_files(base)
    except UserError as error:
        kept, left_out = {}, [str(error)]
    if "tokenizer_config.json" not in kept:
        kept, left_out = {}, [*left_out, "no tokenizer_config.json; special tokens and templates"]
    if left_out:
        print(f"{base}: left out of the export: {'; '.join(left_out)}", flush=True)
    return {**kept, "tokenizer.json": tokenizer.definition} if kept else {}


def stock_family(config: ModelConfig, vocab_size: int) -> Family:
    """The transformers class with this architecture, found by converting to each family and back.

    Raises:
        UserError: there is none.
    """
    wanted = _architecture(config)
    lacking: dict[str, list[str]] = {}
    for family in FAMILIES:
        found = _architecture(replace(config, **family.to_model(family.to_hf(config, vocab_size))))
        lost = [f"model.{name}={value}" for name, value in wanted.items() if found[name] != value]
        if not lost:
            return family
        lacking[family.architecture] = lost
    closest = min(lacking, key=lambda architecture: len(lacking[architecture]))
    raise UserError(
        f"transformers has no class for this model: the closest, {closest}, lacks {', '.join(lacking[closest])}; "
        "as=ssa exports it with this project's own class"
    )


def _own(model: Transformer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors for this project's own class."""
    config = model.config
    described = {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "auto_map": AUTO_MAP,
        MODEL_TYPE: config.plain(),
        **aliases(config, model.token_embedding.num_embeddings),
    }
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if config.tie_embeddings:
        del tensors["model.head.weight"]  # the embedding's
    return described, tensors


def _stock(model: Transformer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors for the transformers class."""
    vocab_size = model.token_embedding.num_embeddings
    family = stock_family(model.config, vocab_size)
    parameters = model.state_dict()
    tensors: dict[str, Tensor] = {}
    for mapping in family.weight_mappings(model.config):
        tensors |= mapping.to_tensors(parameters[mapping.parameter])
    return family.to_hf(model.config, vocab_size), tensors


def _architecture(config: ModelConfig) -> dict[str, Any]:
    """Fields that determine the model's function; those unused with learned positions are None."""
    values = architecture(config) | {"rotary_fraction": config.d_rotary / config.head_dim}
    del values["vocab_size"]
    return values if config.positions == "rotary" else {**values, **_UNUSED}


def _without_added_tokens(processor: dict[str, Any] | None) -> dict[str, Any] | None:
    """The post-processor of a tokenizer.json without the steps that add tokens to a text."""
    if processor is None or processor["type"] in _ADDS_TOKENS:
        return None
    if processor["type"] != "Sequence":
        return processor
    kept = [step for step in map(_without_added_tokens, processor["processors"]) if step is not None]
    return {**processor, "processors": kept} if kept else None


def _write(target: Path, texts: dict[str, str], tensors: dict[str, Tensor]) -> None:
    with writing(f"to={target}"), replacing(target) as partial:
        partial.mkdir(parents=True)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        weights = partial / "model.safetensors"
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        try:
            save_file(contiguous, weights, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from None
        shutil.copymode(partial / "config.json", weights)  # safetensors makes it readable by the owner only


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
