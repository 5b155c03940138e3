"""Adapting a causal language model of transformers: temperatures are added to it, switched off and removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ssa.adapter import interface, probe, tracing
from ssa.adapter.layer import LayerPlan, LayerTemperatures, TokenFrequencies, adapted_layers, dtype_of
from ssa.config import validated
from ssa.config_errors import closest
from ssa.errors import UserError, first_line
from ssa.model.config import TemperatureConfig
from ssa.model.temperature import Temperature
from ssa.model.temperature_rules import Shape, standardized_log_counts
from ssa.rule_names import check_terms, rule, rule_names

Train = Literal["temperature", "all"]
_TRAIN = ("temperature", "all")


@dataclass(frozen=True)
class Adaptation:
    """How a model was adapted; its attribute ``ssa_adaptation``.

    Attributes:
        temperature: the rule.
        base: the attention implementation before.
        n_layer: the number of layers with softmax attention, all of which have temperatures.
        n_other: the number of other layers, such as those of a state-space model.
        frozen: the parameters that were frozen.
    """

    temperature: TemperatureConfig
    base: str
    n_layer: int
    n_other: int
    frozen: tuple[nn.Parameter, ...]


def adapt(
    model: Any,
    temperature: str | TemperatureConfig = "ssa",
    *,
    train: Train = "temperature",
    seed: int = 0,
    token_counts: Tensor | None = None,
    **settings: Any,
) -> Any:
    """Add temperatures to all softmax attention layers of a causal language model, in place.

    The layers and their projections are found by running the model on a few tokens.  Temperatures start where the
    model computes what it did before, for rules that have such a start.

    Args:
        model: a causal language model of transformers, also with adapters of PEFT on it.
        temperature: an option of ``model/temperature=``, such as ``ssa`` (the paper's), ``token``, ``position``,
            ``constant``; or the rule itself.
        train: ``temperature`` freezes all other parameters; ``all`` leaves them as they are.
        seed: for temperatures with random start values (``ssa_mlp``, ``gate``).
        token_counts: how often each token occurs in the training text, (V,); the rule ``frequency`` needs it.
        settings: fields of `TemperatureConfig` that differ from the rule's, such as ``per="layer"``.

    Returns:
        The model.

    Raises:
        UserError: the model cannot be adapted, which leaves it as it was, or a setting is not valid.
    """
    config = _rule(temperature, settings)
    if not isinstance(seed, int):
        raise UserError(f"seed={seed}: valid: a whole number")
    log_frequency = None
    if config.needs_frequencies:
        log_frequency = _log_frequency(token_counts, probe.vocabulary(causal_lm(model)))
    elif token_counts is not None:
        raise UserError(f"token_counts: temperature={config.name} does not read them; valid with frequency")
    return add_temperatures(model, config, train=train, seed=seed, log_frequency=log_frequency)


def add_temperatures(
    model: Any,
    config: TemperatureConfig,
    *,
    train: Train,
    seed: int = 0,
    log_frequency: Tensor | None = None,
    expected: tuple[str, Mapping[str, Any]] | None = None,
) -> Any:
    """`adapt` with a rule that is known to be valid.

    ``log_frequency``: for rules that read it, (V,).  ``expected``: the sizes that the temperatures of each layer must
    have, after whose they are.
    """
    if train not in _TRAIN:
        raise UserError(f"train={train}: valid: {', '.join(_TRAIN)}")
    inner = causal_lm(model)
    if adaptation(inner) is not None:
        raise UserError("model: has temperatures already; ssa.unload(model) removes them")
    base = probe.implementation(inner)
    if base not in interface.BASES:
        raise UserError(
            f"model: attn_implementation={base}: does not say how many keys a query sees; "
            f"valid: {', '.join(interface.BASES)}, as in from_pretrained(..., attn_implementation='sdpa')"
        )
    logits = probe.causal_logits(inner)
    layers = {plan.name: _layer(plan, config, inner) for plan in probe.plans(inner)}
    if expected is not None:
        _check_sizes(*expected, {name: layer.sizes() for name, layer in layers.items()})
    generator = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        layer.reset_parameters(generator)
    try:
        _attach(inner, layers, log_frequency)
        probe.set_implementation(inner, interface.adapted_name(base))
        _check(inner, logits)
    except BaseException:
        _remove(inner, base)
        raise
    ours = {id(parameter) for layer in layers.values() for parameter in layer.parameters()}
    others = [one for one in model.parameters() if id(one) not in ours and one.requires_grad]
    frozen = others if train == "temperature" else []
    for parameter in frozen:
        parameter.requires_grad_(False)
    inner.ssa_adaptation = Adaptation(config, base, len(layers), _other_layers(inner, layers), tuple(frozen))
    return model


def _check_sizes(where: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse temperatures of another architecture.

    Raises:
        UserError: names the first layer that differs.
    """
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise UserError(
                f"{where}: {name}: temperatures of sizes {expected.get(name)}; this model's have {found.get(name)}"
            )


def adaptation(model: Any) -> Adaptation | None:
    """How a model was adapted; None if it was not."""
    found = getattr(causal_lm(model), "ssa_adaptation", None)
    return found if isinstance(found, Adaptation) else None


@contextmanager
def disable(model: Any) -> Iterator[None]:
    """In this block the model computes what it would without temperatures.

    Raises:
        UserError: it has none.
    """
    layers = adapted(model).values()
    before = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = False
        yield
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


def unload(model: Any) -> Any:
    """Remove the temperatures, in place; parameters that `adapt` froze are trained again.

    Returns:
        The model.

    Raises:
        UserError: it has none.
    """
    adapted(model)
    inner = causal_lm(model)
    found: Adaptation = inner.ssa_adaptation
    _remove(inner, found.base)
    for parameter in found.frozen:
        parameter.requires_grad_(True)
    del inner.ssa_adaptation
    return model


def print_trainable_parameters(model: Any) -> None:
    """Print how many parameters are trained, how many are temperatures', and in how many layers.

    Raises:
        UserError: the model has no temperatures.
    """
    layers = adapted(model)
    found: Adaptation = causal_lm(model).ssa_adaptation
    every = list(model.parameters())
    trained = sum(one.numel() for one in every if one.requires_grad)
    total = sum(one.numel() for one in every)
    ours = sum(one.numel() for layer in layers.values() for one in layer.parameters())
    where = f"{found.n_layer} of {found.n_layer + found.n_other} layers" if found.n_other else f"{found.n_layer} layers"
    print(
        f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f} || "
        f"temperatures ({found.temperature.name}): {ours:,} in {where}"
    )


def causal_lm(model: Any) -> PreTrainedModel:
    """The model of transformers, inside what PEFT has made of it.

    Raises:
        UserError: it is none, or has no head for the next token.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = type(inner).__name__
    if not isinstance(inner, PreTrainedModel):
        raise UserError(f"model: {name} is no model of transformers; valid: a causal language model")
    if inner.config.is_encoder_decoder or inner.get_output_embeddings() is None:
        raise UserError(f"model: {name} is no causal language model; valid: a class such as AutoModelForCausalLM has")
    if any(parameter.is_meta for parameter in inner.parameters()):
        raise UserError(f"model: {name} is on the meta device; valid: a model with its weights loaded")
    return inner


def _rule(temperature: str | TemperatureConfig, settings: dict[str, Any]) -> TemperatureConfig:
    if isinstance(temperature, str) and temperature in rule_names():
        temperature = rule(temperature)
    if not isinstance(temperature, TemperatureConfig):
        guess = closest(str(temperature), rule_names())
        valid = ", ".join(name for name in rule_names() if name != "none")
        raise UserError(f"temperature={temperature}: not one of the rules{guess}; valid: {valid}")
    try:
        found = validated(TemperatureConfig, temperature.plain() | settings).starting(pretrained=True)
        check_terms(found)
    except ValueError as error:
        raise UserError(first_line(error)) from None
    if not found.scaled:
        raise UserError(f"temperature={found.name}: scales nothing")
    if unused := found.unused_settings & settings.keys():
        raise UserError(
            f"{sorted(unused)[0]}={settings[sorted(unused)[0]]}: no term of temperature={found.name} reads it"
        )
    return found


def _log_frequency(token_counts: Tensor | None, size: int) -> Tensor:
    if not isinstance(token_counts, Tensor):
        raise UserError(
            f"token_counts={token_counts}: temperature=frequency needs how often each of the {size:,} tokens occurs, "
            "as a tensor"
        )
    if tuple(token_counts.shape) != (size,):
        raise UserError(f"token_counts: shape {tuple(token_counts.shape)}; valid: ({size},)")
    if not token_counts.double().isfinite().all() or token_counts.min() < 0 or token_counts.sum() == 0:
        raise UserError("token_counts: valid: finite numbers, none below 0, not all 0")
    return standardized_log_counts(token_counts).float()


def _layer(plan: LayerPlan, config: TemperatureConfig, model: PreTrainedModel) -> LayerTemperatures:
    """New temperatures for a layer, without values.

    Raises:
        UserError: it has no projection that a temperature needs.
    """
    attention = model.get_submodule(plan.name)
    if hasattr(attention, "temperature"):
        raise UserError(f"model: {plan.name} ({type(attention).__name__}) has an attribute `temperature` of its own")
    made: dict[str, Temperature] = {}
    for slot, terms in config.scaled.items():
        shape = Shape(plan.n_head, plan.value_dim, plan.d_model)
        if slot != "output":
            if slot not in plan.sources:
                raise UserError(
                    f"model: {plan.name} ({type(attention).__name__}): its {slot} is {plan.missing[slot]}, so that a "
                    f"temperature cannot read it; temperature={config.name} scales the {slot}"
                )
            source = plan.sources[slot]
            shape = Shape(source.features.n_head, source.features.head_dim, plan.d_model)
        made[slot] = Temperature(terms, shape, config)
        if slot != "output" and made[slot].per_feature and source.end != source.projection:
            raise UserError(
                f"model: {plan.name} ({type(attention).__name__}) normalizes its {slot} already ({source.end}); "
                f"temperature={config.name} would do so again"
            )
    weights = list(attention.parameters())
    layer = LayerTemperatures(made, plan)
    return layer.to(device=weights[0].device, dtype=dtype_of(weights))


def _attach(model: PreTrainedModel, layers: dict[str, LayerTemperatures], log_frequency: Tensor | None) -> None:
    if log_frequency is not None:
        device = model.get_input_embeddings().weight.device
        model.ssa_frequencies = TokenFrequencies(log_frequency.to(device))
        model.ssa_frequencies.attach(model)
        for layer in layers.values():
            layer.frequencies = (model.ssa_frequencies,)
    for name, layer in layers.items():
        attention = model.get_submodule(name)
        attention.temperature = layer
        layer.attach(attention)


def _remove(model: PreTrainedModel, base: str) -> None:
    for name, layer in adapted_layers(model).items():
        layer.detach()
        del model.get_submodule(name).temperature
    if isinstance(frequencies := getattr(model, "ssa_frequencies", None), TokenFrequencies):
        frequencies.detach()
        del model.ssa_frequencies
    if probe.implementation(model) == interface.adapted_name(base):
        probe.set_implementation(model, base)


def _check(model: PreTrainedModel, logits: Tensor) -> None:
    """Run an adapted model: without its temperatures, and with a cache.

    Raises:
        UserError: its logits are not those from before, or a temperature would be computed from cached tokens.
    """
    with probe.probing(model):
        with disable(model):
            same = torch.equal(probe.run(model, tracing.LENGTHS[0]), logits)
        if not same:
            raise UserError(f"model: {type(model).__name__} computes other logits once its attention is this package's")
        probe.run(model, tracing.LENGTHS[0])
        try:
            with disable(model):
                probe.run_with_cache(model)
        except Exception:  # of any kind: the model itself does not run with a cache, so there is nothing to check
            return
        probe.run_with_cache(model)


def _other_layers(model: PreTrainedModel, layers: Mapping[str, LayerTemperatures]) -> int:
    """Layers without softmax attention, by the number in the model's config."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", len(layers))
    return max(0, count - len(layers))


def adapted(model: Any) -> dict[str, LayerTemperatures]:
    """The temperatures of a model by the name of their attention layer.

    Raises:
        UserError: it has none.
    """
    layers = adapted_layers(causal_lm(model))
    if not layers:
        raise UserError("model: has no temperatures; ssa.adapt(model) adds them")
    return layers
