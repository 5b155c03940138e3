"""The config class of an exported model with temperatures."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from ssa.model.config import ModelConfig
from ssa.pretrained.remote.aliases import aliases


class SSAConfig(PretrainedConfig):
    """A `ModelConfig` under the key ``ssa``, with its sizes under the usual names.

    Args:
        ssa: the model, as plain values.
        vocab_size: rows of the embedding; default: the model's.
        kwargs: see `PretrainedConfig`; sizes of the model cannot be set.

    Raises:
        ValueError: ``ssa`` describes no model, or no vocabulary size is known.
    """

    model_type = "ssa"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012  # as in other config classes
    has_no_defaults_at_init = True

    def __init__(self, ssa: dict[str, Any] | None = None, vocab_size: int | None = None, **kwargs: Any) -> None:
        if ssa is None:
            raise ValueError("config.json: no key `ssa`, which describes the model")
        model = ModelConfig.from_plain(ssa)
        vocab_size = vocab_size or model.vocab_size
        if vocab_size is None:
            raise ValueError("config.json: no vocab_size")
        self.ssa = model.plain()
        self.use_cache = kwargs.pop("use_cache", True)
        super().__init__(**{**kwargs, **aliases(model, vocab_size)})
