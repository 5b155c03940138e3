"""The temperatures of one attention layer of an adapted model, and the hooks that apply them.

In a forward pass of the layer:

1. before it: the hidden states and the number of visible keys are noted;
2. after a projection: its temperature is computed from the projection's output, before any normalization or rotation,
   and multiplies that output, so that a cache holds scaled keys and values;
3. after a normalization of keys or values: it multiplies that instead, as it would be undone before;
4. in the attention function: it multiplies a query that was normalized, and the attention output.

Letters: B batch, T tokens, H heads, d head_dim, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import Cache, PreTrainedModel

from ssa.adapter.features import FeatureIndex, as_output, by_token
from ssa.adapter.visible_keys import visible_keys
from ssa.errors import UserError
from ssa.model.temperature import Temperature, scale
from ssa.model.temperature_rules import Tokens


@dataclass(frozen=True)
class Source:
    """Where a query, key or value comes from, in modules by their names in the attention layer.

    Attributes:
        projection: the module that computes it.
        features: its features in that module's output.
        end: the last module whose output has them, the projection or a normalization.
        end_features: its features in that output.
    """

    projection: str
    features: FeatureIndex
    end: str
    end_features: FeatureIndex


@dataclass(frozen=True)
class LayerPlan:
    """What is known of an attention layer.

    Attributes:
        name: of the layer in the model.
        d_model: D.
        n_head: H, of the query.
        value_dim: d of the attention output.
        arguments: names of its forward's positional arguments.
        hidden: of these, the hidden states.
        mask: of these, the attention mask; None: it takes none.
        sources: of query, key and value, where they were found.
        missing: why others were not.
    """

    name: str
    d_model: int
    n_head: int
    value_dim: int
    arguments: tuple[str, ...]
    hidden: str
    mask: str | None
    sources: Mapping[str, Source]
    missing: Mapping[str, str] = field(default_factory=dict)


class TokenFrequencies(nn.Module):
    """Log-frequencies of the tokens of a batch, for temperatures that read them.

    ``log_frequency``: of each token of the vocabulary, standardized, (V,).
    """

    def __init__(self, log_frequency: Tensor) -> None:
        super().__init__()
        self.register_buffer("log_frequency", log_frequency)
        self._of_batch: Tensor | None = None  # (B, T), during a forward pass
        self._handles: list[RemovableHandle] = []

    def attach(self, model: PreTrainedModel) -> None:
        """Read the tokens that the model embeds."""
        self._handles = [
            model.register_forward_pre_hook(self._forget),
            model.get_input_embeddings().register_forward_pre_hook(self._read),
            model.register_forward_hook(self._forget, always_call=True),
        ]

    def detach(self) -> None:
        """The inverse of `attach`."""
        for handle in self._handles:
            handle.remove()

    def of_batch(self, hidden: Tensor) -> Tensor:
        """Those of the tokens whose hidden states (B, T, D) these are, (B, T).

        Raises:
            UserError: the tokens are not known.
        """
        if self._of_batch is None or self._of_batch.shape != hidden.shape[:2]:
            raise UserError(
                "temperature=frequency reads the ids of the tokens: valid: input_ids, in place of inputs_embeds, and "
                "no activation checkpointing"
            )
        return self._of_batch.to(hidden.device)

    def _read(self, embedding: nn.Module, args: tuple[Any, ...]) -> None:
        self._of_batch = self.get_buffer("log_frequency")[args[0]]

    def _forget(self, model: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        """A block that is computed again later, in a backward pass, would read those of another batch."""
        self._of_batch = None


# Called with the layer's temperatures, its query (scaled, rotated), key, mask, and other arguments of the interface.
LayerObserver = Callable[["LayerTemperatures", Tensor, Tensor, "Tensor | None", Mapping[str, Any]], None]


class LayerTemperatures(nn.ModuleDict):
    """The temperatures of one attention layer by what they scale: query, key, value, output.

    ``tokens``: what the temperatures of the pass in progress can read; None outside of one, or if disabled.
    """

    def __init__(self, temperatures: Mapping[str, Temperature], plan: LayerPlan) -> None:
        super().__init__(temperatures)
        self.plan = plan
        self.enabled = True
        self.frequencies: tuple[TokenFrequencies, ...] = ()  # in a tuple: a submodule of the model, not of each layer
        self.tokens: Tokens | None = None
        self._reached = False  # whether the pass in progress has come to the attention function
        self._now: dict[str, Tensor] = {}  # temperatures of the pass in progress, still to be applied
        self.observer: LayerObserver | None = None
        self.recorded: dict[str, Tensor] = {}  # temperatures of the pass in progress, for the observer
        self._handles: list[RemovableHandle] = []
        self._hooked: dict[str, tuple[nn.Module, RemovableHandle]] = {}
        self._sources = {name: plan.sources[name] for name in temperatures if name != "output"}

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Sets all parameters to their start values; random ones are drawn from ``generator``."""
        for temperature in self.values():
            assert isinstance(temperature, Temperature)
            temperature.reset_parameters(generator)

    def sizes(self) -> dict[str, list[int]]:
        """The shape of each parameter by name, such as ``query.terms.token.weight``."""
        return {name: list(parameter.shape) for name, parameter in self.named_parameters()}

    def attach(self, attention: nn.Module) -> None:
        """Add the hooks to the attention layer; it must not have any of another instance."""
        self._handles = [
            attention.register_forward_pre_hook(self._begin, with_kwargs=True),
            attention.register_forward_hook(self._check_reached),
            attention.register_forward_hook(self._finish, always_call=True),
        ]
        self._hook_projections(attention)

    def detach(self) -> None:
        """Remove all hooks."""
        for handle in [*self._handles, *(handle for _, handle in self._hooked.values())]:
            handle.remove()
        self._handles, self._hooked = [], {}

    def scaled_query(self, query: Tensor) -> Tensor:
        """The query as attention reads it, (B, H, T, d), times its temperature, unless that was before."""
        self._reached = True
        temperature = self._now.pop("query", None)
        return query if temperature is None else scale(query, temperature.transpose(1, 2))

    def scaled_output(self, mixed: Tensor) -> Tensor:
        """The attention output, (B, T, H, d), times its temperature."""
        if "output" not in self or self.tokens is None:
            return mixed
        return scale(mixed, self._computed_temperature("output", mixed, self.tokens))

    def _computed_temperature(self, slot: str, features: Tensor, tokens: Tokens) -> Tensor:
        temperature: Tensor = self[slot](features, tokens)
        if self.observer is not None:
            self.recorded[slot] = temperature
        return temperature

    def _begin(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._now, self.tokens, self.recorded = {}, None, {}
        if not self.enabled:
            return
        self._hook_projections(attention)
        given = dict(zip(self.plan.arguments, args, strict=False)) | kwargs
        hidden: Tensor = given[self.plan.hidden]
        if getattr(attention, "_is_replica", False):
            raise UserError(
                "model: nn.DataParallel is not supported; valid: DistributedDataParallel, as torchrun starts it"
            )
        cache = next((value for value in given.values() if isinstance(value, Cache)), None)
        mask = given.get(self.plan.mask) if self.plan.mask else None
        number = given.get("layer_idx", getattr(attention, "layer_idx", None))
        n = visible_keys(mask, cache, number, hidden)
        self.tokens = Tokens(hidden, n, self.frequencies[0].of_batch(hidden) if self.frequencies else None)
        self._reached = False

    def _finish(self, attention: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._now, self.tokens, self.recorded = {}, None, {}

    def _check_reached(self, attention: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Refuse a pass in which attention did not go through `ssa.adapter.interface`."""
        if self.tokens is not None and not self._reached:
            raise UserError(
                f"model: {self.plan.name}: its attn_implementation was changed after ssa.adapt; valid: set it before"
            )

    def _hook_projections(self, attention: nn.Module) -> None:
        """Hook the modules that compute and end the features, also if PEFT has replaced one since."""
        for name in self._names():
            module = attention.get_submodule(name)
            hooked = self._hooked.get(name)
            if hooked is None or hooked[0] is not module:
                if hooked is not None:
                    hooked[1].remove()
                self._hooked[name] = (module, module.register_forward_hook(self._computed))

    def _names(self) -> Iterable[str]:
        ends = (source.end for slot, source in self._sources.items() if self._scaled_early(slot))
        return dict.fromkeys([*(source.projection for source in self._sources.values()), *ends])

    def _scaled_early(self, slot: str) -> bool:
        """Whether it is scaled before the attention function."""
        source = self._sources[slot]
        return slot != "query" or source.end == source.projection

    def _computed(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """After a projection or normalization: compute temperatures, scale what is not scaled later."""
        tokens = self.tokens
        if tokens is None:
            return None
        name = next(name for name, (hooked, _) in self._hooked.items() if hooked is module)
        found = [index for slot in self._sources for index in self._indices(slot, name)]
        axis = found[0].axis
        if output.size(axis) != tokens.hidden.size(1):
            slots = " and ".join(slot for slot in self._sources if self._indices(slot, name))
            raise UserError(
                f"model: {self.plan.name}: its cache holds what {name} computes the {slots} from, so that temperatures "
                f"of earlier tokens are lost; valid: rules that do not scale the {slots}"
            )
        features = scaled = by_token(output, axis)
        for slot, source in self._sources.items():
            if source.projection == name:
                self._now[slot] = self._computed_temperature(slot, source.features.select(features), tokens)
            if source.end == name and self._scaled_early(slot):
                scaled = source.end_features.scale(scaled, self._now.pop(slot))
        return None if scaled is features else as_output(scaled, output, axis)

    def _indices(self, slot: str, name: str) -> list[FeatureIndex]:
        """Where the features of a slot lie in a module's output, if they do."""
        source = self._sources[slot]
        return [source.features] * (source.projection == name) + [source.end_features] * (source.end == name)


def adapted_layers(model: nn.Module) -> dict[str, LayerTemperatures]:
    """The temperatures of a model by the name of their attention layer."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, LayerTemperatures)}
    return {name.rpartition(".")[0]: module for name, module in found.items()}


def dtype_of(parameters: Iterable[Tensor]) -> torch.dtype:
    """The dtype of temperatures: float32, or float64 in a float64 model."""
    return torch.float64 if any(one.dtype == torch.float64 for one in parameters) else torch.float32
