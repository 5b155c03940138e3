"""The model class of an exported model: `Transformer` with the interface of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from ssa.model.config import ModelConfig
from ssa.model.kv_cache import KVCache
from ssa.model.temperature_rules import INIT_STD
from ssa.model.transformer import Transformer
from ssa.pretrained.remote.configuration_ssa import SSAConfig

_REFUSED = {
    "position_ids": "they follow from attention_mask",
    "inputs_embeds": "temperatures may read token ids",
    "output_attentions": "attention maps are never materialized",
    "output_hidden_states": "the model does not return them",
}
_CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"  # before 5.24


class CacheLayer:
    """One layer of a transformers cache, with the interface of `LayerCache`."""

    def __init__(self, cache: Cache, number: int) -> None:
        self.cache, self.number = cache, number

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.cache.update(key, value, self.number)
        return keys, values


class SSAModel(Transformer):
    """`Transformer` with the interface of a base model of transformers, which trainers may call in place of the whole.

    Attributes:
        gradient_checkpointing: `checkpoint_activations`, by the name that transformers sets.
    """

    @property
    def gradient_checkpointing(self) -> bool:
        return self.checkpoint_activations

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        self.checkpoint_activations = enable

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """The input of the output matrix, (B, T, D).

        Args:
            input_ids: (B, T), the tokens after those in the cache.
            attention_mask: (B, S), 1 for tokens, 0 for padding; includes tokens in the cache.
            past_key_values: a growing cache, such as `DynamicCache`; default: none.
            cache: its name in transformers 5.24 and later.
            kwargs: other arguments of such models, without effect.

        Raises:
            ValueError: padding between tokens, a mask of the wrong shape, a cache of fixed size, or an unsupported
                argument.
        """
        for name, reason in _REFUSED.items():
            if kwargs.get(name) is not None and kwargs[name] is not False:
                raise ValueError(f"{name}: not supported, {reason}")
        cache = past_key_values if cache is None else cache
        kept = _adapted(cache, len(self.blocks)) if cache is not None else None
        visible_keys = _visible(attention_mask, input_ids.size(1), kept.length if kept is not None else 0)
        hidden = self.hidden(input_ids, visible_keys=visible_keys, cache=kept)
        return BaseModelOutputWithPast(last_hidden_state=hidden, **{_CACHE: cache})


class SSAForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model with temperatures.  New weights start as in training, drawn with torch's generator."""

    config_class = SSAConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _no_split_modules = ["Block"]  # noqa: RUF012  # this and the next two: as in other model classes
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _tied_weights_keys = {"model.head.weight": "model.token_embedding.weight"}  # noqa: RUF012
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: SSAConfig) -> None:
        super().__init__(config)
        self.model = SSAModel(ModelConfig.from_plain(config.ssa), config.vocab_size, seed=None)
        self.post_init()
        self._keep_in_fp32_modules_strict = {"temperature", "log_frequency"}  # as in training, also in bf16 models
        if self.model.token_embedding.weight.device.type != "meta":  # there, weights are loaded later
            self.model.reset_parameters(int(torch.randint(2**31, ())))

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """See `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: weights are missing, which would otherwise stay random.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        if lost := sorted(info["missing_keys"]):
            raise ValueError(f"{len(lost)} weights are missing, such as {lost[0]}")
        return (model, info) if output_loading_info else model

    def _init_weights(self, module: nn.Module) -> None:
        # New embeddings after a resize.  Not `Tensor.normal_`: only torch.nn.init is patched to skip loaded weights.
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=INIT_STD)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.token_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.token_embedding = value

    def get_output_embeddings(self) -> nn.Module:
        return self.model.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.model.head = new_embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Next-token logits and, if labels are given, the mean loss.

        Args:
            input_ids: (B, T), the tokens after those in the cache.
            attention_mask: (B, S), 1 for tokens, 0 for padding; includes tokens in the cache.
            past_key_values: a growing cache, such as `DynamicCache`.
            cache: its name in transformers 5.24 and later.
            labels: (B, T), equal to ``input_ids`` (not shifted); -100 is ignored.
            use_cache: whether to return a cache; default: the config's, but none with activation checkpointing.
            logits_to_keep: number of last positions, or indices, to return logits for; 0: all.
            return_dict: whether to return an output object rather than a tuple; default: the config's.
            kwargs: passed to the loss.

        Raises:
            ValueError: padding between tokens, a mask of the wrong shape, a cache of fixed size, or an unsupported
                argument.
        """
        cache = past_key_values if cache is None else cache
        recomputes = self.model.gradient_checkpointing and self.training  # which takes a forward pass without a cache
        if cache is None and not recomputes and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache()
        hidden = self.model(input_ids, attention_mask, cache=cache, **kwargs).last_hidden_state
        logits = self.model.head(hidden)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.size(-1), **kwargs)
        asked = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        output = CausalLMOutputWithPast(loss=loss, logits=logits[:, asked], **{_CACHE: cache})
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


def _adapted(cache: Cache, n_layer: int) -> KVCache:
    if getattr(cache, "is_compileable", False):
        raise ValueError(f"cache: {type(cache).__name__} has a fixed size; valid: DynamicCache")
    return KVCache([CacheLayer(cache, number) for number in range(n_layer)], cache.get_seq_length())


def _visible(mask: Tensor | None, length: int, past: int) -> Tensor | None:
    """Number of keys visible to each of the last ``length`` tokens; None if all, the fast path of attention."""
    if mask is None:
        return None
    if mask.shape[1:] != (past + length,):
        raise ValueError(f"attention_mask: has shape {tuple(mask.shape)}; valid: (batch, {past + length})")
    mask = mask.bool().long()
    if (mask[:, 0] + (mask.diff() > 0).sum(1) > 1).any():
        raise ValueError("attention_mask: padding between tokens; pad on the left for generation")
    return None if mask[:, 0].all() else mask.cumsum(1).clamp(min=1)[:, -length:]
