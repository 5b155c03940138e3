"""A trained model as a Hugging Face folder, whole or not at all.  Writing one takes no transformers, only reading it.

Without temperatures the model is written for the class that transformers has for its architecture.  With them it is
written under this project's own parameter names, with the source that computes it (`ssa.pretrained.remote_code`).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ssa.config import Config
from ssa.errors import UserError
from ssa.files import check_new_folder, replacing
from ssa.model.config import ModelConfig
from ssa.model.transformer import Transformer
from ssa.pretrained.families import FAMILIES, Family
from ssa.pretrained.model_card import model_card
from ssa.pretrained.remote.aliases import aliases
from ssa.pretrained.remote_code import ARCHITECTURE, AUTO_MAP, MODEL_TYPE, remote_code
from ssa.pretrained.source import architecture, small_files
from ssa.record.run_model import load_run
from ssa.text.tokenization import Tokenizer

Kind = Literal["auto", "ssa"]

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_KEPT = ("config.json", "generation_config.json", *_TOKENIZER)
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_ADDS_TOKENS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")
_UNREAD = dict.fromkeys(("rotary_fraction", "rope_theta", "rope_scaling"))  # where positions are learned


def export(run: str | Path, to: str | Path, kind: Kind = "auto") -> tuple[Path, bool]:
    """Writes the best model of a run, and its tokenizer, to a new folder.

    Args:
        run: its folder.
        to: the new one; it may exist if it is empty.
        kind: ``ssa``: with this project's own class, also where transformers has one.

    Returns:
        The folder, and whether that class was taken.

    Raises:
        UserError: `to` is in use or cannot be written, `run` has no model (see `load_run`), or transformers has no
            class for it.
    """
    target = Path(to).expanduser().resolve()
    check_new_folder(target, f"to={target}")
    config, model, tokenizer = load_run(run)
    own = kind == "ssa" or bool(config.model.temperature.scaled)
    end = {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text}
    described, tensors = _own(model) if own else _stock(model)
    theirs = _kept_files(config)
    ids = {key: value for key, value in json.loads(theirs.pop("config.json", "{}")).items() if key in _TOKEN_IDS}
    texts = {
        "config.json": _json({**described, **(ids or end), "dtype": "float32", "torch_dtype": "float32"}),
        "generation_config.json": _json({**end, "pad_token_id": tokenizer.end_of_text}),
        **(theirs or tokenizer_files(tokenizer, config.model.max_positions)),
        "README.md": model_card(config, Path(run), target.name, own),
        **(remote_code() if own else {}),
    }
    _write(target, texts, tensors)
    return target, own


def tokenizer_files(tokenizer: Tokenizer, length: int) -> dict[str, str]:
    """What AutoTokenizer reads, to give the ids that the model was trained on: nothing is added to a text.

    Args:
        tokenizer: the run's.
        length: the model's longest context.
    """
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


def _kept_files(config: Config) -> dict[str, str]:
    """Of a fine-tuned model with its own tokenizer, the files that say what its special tokens and templates are."""
    if config.init_from is None or config.data.tokenizer != config.init_from:
        return {}
    try:
        files = small_files(config.init_from, _KEPT)
    except (UserError, OSError, ValueError):
        files = {}
    if "tokenizer.json" in files and "tokenizer_config.json" in files:
        return files
    print(
        f"{config.init_from}: tokenizer files not available; special tokens and templates are left out",
        flush=True,
    )
    return {}


def stock_family(config: ModelConfig, vocab_size: int) -> Family:
    """The class of transformers that has the architecture, found by describing it there and back.

    Raises:
        UserError: none has it.
    """
    wanted = _architecture(config)
    lacking: dict[str, list[str]] = {}
    for family in FAMILIES:
        described = family.to_hf(config, vocab_size)
        found = _architecture(replace(config, **family.to_model(described)))
        lacking[family.architecture] = [
            f"model.{name}={wanted[name]}" for name in wanted if found[name] != wanted[name]
        ]
        if not lacking[family.architecture]:
            return family
    closest = min(lacking, key=lambda architecture: len(lacking[architecture]))
    raise UserError(
        f"transformers has no class for this model: the closest, {closest}, lacks {', '.join(lacking[closest])}; "
        "as=ssa writes it with this project's own class"
    )


def _own(model: Transformer) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The model's part of config.json, and its tensors, for the class in `ssa.pretrained.remote`."""
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
    """The same for the class of transformers that has the architecture."""
    vocab_size = model.token_embedding.num_embeddings
    family = stock_family(model.config, vocab_size)
    ours = model.state_dict()
    theirs: dict[str, Tensor] = {}
    for correspondence in family.tensors(model.config):
        theirs |= correspondence.to_theirs(ours[correspondence.ours])
    return family.to_hf(model.config, vocab_size), theirs


def _architecture(config: ModelConfig) -> dict[str, Any]:
    """What decides the model's function, with defaults resolved, and what learned positions do not read left out."""
    values = architecture(config) | {"rotary_fraction": config.d_rotary / config.head_dim}
    del values["vocab_size"]
    return values if config.positions == "rotary" else {**values, **_UNREAD}


def _without_added_tokens(processor: dict[str, Any] | None) -> dict[str, Any] | None:
    """The post-processor of a tokenizer.json less what puts tokens before or after a text."""
    if processor is None or processor["type"] in _ADDS_TOKENS:
        return None
    if processor["type"] != "Sequence":
        return processor
    kept = [part for part in map(_without_added_tokens, processor["processors"]) if part is not None]
    return {**processor, "processors": kept} if kept else None


def _write(target: Path, texts: dict[str, str], tensors: dict[str, Tensor]) -> None:
    try:
        with replacing(target) as partial:
            partial.mkdir(parents=True)
            for name, text in texts.items():
                (partial / name).write_text(text, encoding="utf-8")
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            weights = partial / "model.safetensors"
            save_file(contiguous, weights, metadata={"format": "pt"})
            shutil.copymode(partial / "config.json", weights)  # safetensors lets no one else read it
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"to={target}: cannot be written ({reason})") from None


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
