"""Finding the attention layers of a model, and where their queries, keys and values come from, by running it.

One pass over a few tokens shows which modules call transformers' attention interface, and with what.  Each of them is
then run alone, several times, while the output of one of its submodules is replaced by codes, a number for each
feature.  Where the codes arrive at the interface, unchanged or times a constant, is what the submodule computes.  The
first token is looked at, whose rotation is the identity.

Letters: B batch, T tokens, H heads, d head_dim, F features of a token.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssa.adapter.features import FeatureIndex, as_output, by_token, token_axis
from ssa.adapter.interface import observed
from ssa.adapter.layer import LayerPlan, Source
from ssa.adapter.visible_keys import visible_keys
from ssa.errors import UserError

LENGTHS = (13, 11)  # of the probe, in tokens; the second where the first is a number of heads
PADDING = 3  # tokens at the left of the probe's second row
_BASE = 64  # of the codes: small integers, which bfloat16 has
_FIRST = 2  # the smallest code: 1 is what a feature of another module looks like
_UNIT = 2.0**-6  # what they are multiplied by: some models limit the size of queries, keys and values
_TOLERANCE = 0.2
_AGAIN = "#"  # before the number of a module's call, after the first
SLOTS = ("query", "key", "value")


class _Stop(Exception):
    """Ends a pass where it has shown what it should."""


class Call(NamedTuple):
    """A call of an attention layer."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Seen(NamedTuple):
    """What a pass shows of an attention layer: the inputs of the interface, and those of its submodules."""

    tensors: dict[str, Tensor]  # by slot, (B, T, H d)
    inputs: dict[str, Tensor]  # by place, (B, T, F)
    heads: dict[str, int]  # by slot
    mask: Tensor | None


class Reached(NamedTuple):
    """Where the features of a submodule's output arrive: for each feature there, its number in the output, or -1."""

    slots: dict[str, Tensor]
    inputs: dict[str, Tensor]  # of submodules, by place


def attention_layers(model: nn.Module, run: Callable[[], Any]) -> dict[str, tuple[nn.Module, Call, Seen]]:
    """The modules that call the attention interface when ``run`` runs the model, by name, in this order."""
    names = {module: name for name, module in model.named_modules()}
    calls: dict[nn.Module, Call] = {}
    found: dict[str, tuple[nn.Module, Call, Seen]] = {}

    def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[module] = Call(args, kwargs)

    def observer(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        if module not in calls:
            raise UserError(f"model: {type(module).__name__} calls the attention interface outside its forward")
        found.setdefault(names[module], (module, calls[module], _seen(query, key, value, mask)))

    handles = [module.register_forward_pre_hook(called, with_kwargs=True) for module in names]
    try:
        with observed(observer):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def structure(attention: nn.Module, call: Call) -> tuple[Any, ...]:
    """What layers have in common whose queries, keys and values come from the same places."""
    parts = [(name, type(module)) for name, module in attention.named_modules()]
    shapes = [(name, tuple(parameter.shape)) for name, parameter in attention.named_parameters()]
    given = [(name, type(value)) for name, value in call.kwargs.items()]
    return tuple(parts), tuple(shapes), len(call.args), tuple(given)


def trace(name: str, attention: nn.Module, call: Call, seen: Seen) -> LayerPlan:
    """Where the query, key and value of an attention layer come from.

    Raises:
        UserError: its hidden states or its mask cannot be found.
    """
    parameters = list(inspect.signature(attention.forward).parameters)
    given = dict(zip(parameters, call.args, strict=False)) | call.kwargs
    of_tokens = [key for key, value in given.items() if isinstance(value, Tensor) and value.ndim == 3]
    if not of_tokens:
        raise UserError(f"model: {name} ({type(attention).__name__}) is given no hidden states (batch, tokens, width)")
    hidden: Tensor = given[of_tokens[0]]
    sources, missing = _sources(attention, call, hidden.size(1))
    return LayerPlan(
        name=name,
        d_model=hidden.size(2),
        n_head=seen.heads["query"],
        value_dim=seen.tensors["value"].size(2) // seen.heads["value"],
        arguments=tuple(parameters),
        hidden=of_tokens[0],
        mask=_mask_argument(name, given, hidden, seen.mask),
        sources=sources,
        missing=missing,
    )


def _mask_argument(name: str, given: Mapping[str, Any], hidden: Tensor, mask: Tensor | None) -> str | None:
    """The argument that says which keys are visible, as the mask that reaches the interface does."""
    named = [key for key, value in given.items() if isinstance(value, Tensor) and value.ndim == 4]
    wanted = visible_keys(mask, None, None, hidden)
    for key in [*named, None]:
        found = visible_keys(given[key] if key else None, None, None, hidden)
        if found.shape == wanted.shape and torch.equal(found, wanted):
            return key if key else ("attention_mask" if "attention_mask" in given else None)
    raise UserError(f"model: {name}: its mask is not the one that it is given, so that visible keys cannot be counted")


def _seen(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Seen:
    heads = dict(zip(SLOTS, (query, key, value), strict=True))
    tensors = {slot: tensor.transpose(1, 2).flatten(2).detach().clone() for slot, tensor in heads.items()}
    return Seen(tensors, {}, {slot: tensor.size(1) for slot, tensor in heads.items()}, mask)


def _sources(attention: nn.Module, call: Call, length: int) -> tuple[dict[str, Source], dict[str, str]]:
    outputs = _outputs(attention, call, length)
    origins = {place: _carried(attention, call, place, output, length) for place, output in outputs.items()}
    repeated = {place.partition(_AGAIN)[0] for place in outputs if _AGAIN in place}
    axes = {place: token_axis(output, length) or 1 for place, output in outputs.items()}
    plain = _replay(attention, call, length)
    sources, missing = {}, {}
    for slot in SLOTS:
        found = _source(attention, slot, plain, origins, axes)
        if isinstance(found, Source) and found.projection in repeated:
            found = f"the output of {found.projection}, which is called several times"
        if isinstance(found, Source) and slot != "query" and found.end in repeated:
            found = f"normalized by {found.end}, which is called several times"
        if isinstance(found, Source):
            sources[slot] = found
        else:
            missing[slot] = found
    return sources, missing


def _source(
    attention: nn.Module, slot: str, plain: Seen, origins: Mapping[str, Reached], axes: Mapping[str, int]
) -> Source | str:
    """Where a query, key or value comes from; text: why that cannot be said.

    Args:
        attention: the layer.
        slot: which of the three.
        plain: an undisturbed pass.
        origins: by place, where the features of its output arrive.
        axes: by place, the axis of the tokens in its output.
    """
    ends = {place: reached.slots[slot] for place, reached in origins.items() if slot in reached.slots}
    whole = {place: numbers for place, numbers in ends.items() if bool((numbers >= 0).all())}
    if not whole:
        return f"put together from {', '.join(ends)}" if len(ends) > 1 else "not the output of any of its modules"
    projections = [place for place in whole if _is_projection(attention, place)]
    end = _outermost(projections or list(whole))
    head_dim = plain.tensors[slot].size(2) // plain.heads[slot]
    index = _by_head(whole[end], head_dim, axes[end])
    if projections:
        module = end.partition(_AGAIN)[0]
        return Source(module, index, module, index)
    inputs = {place: reached.inputs[end] for place, reached in origins.items() if end in reached.inputs}
    before = {
        place: numbers
        for place, numbers in inputs.items()
        if bool((numbers >= 0).all()) and _is_projection(attention, place)
    }
    if not before:
        return f"normalized by {end}, whose input is not the output of a projection"
    projection = _outermost(list(before))
    places = torch.tensor(index.indices)
    features = _by_head(before[projection][places], head_dim, axes[projection])
    return Source(projection.partition(_AGAIN)[0], features, end.partition(_AGAIN)[0], index)


def _by_head(indices: Tensor, head_dim: int, axis: int) -> FeatureIndex:
    """Features of each head; heads that repeat earlier ones, as in grouped-query attention, are left out."""
    heads = list(dict.fromkeys(tuple(head) for head in indices.view(-1, head_dim).tolist()))
    return FeatureIndex(len(heads), head_dim, axis, tuple(index for head in heads for index in head))


def _is_projection(attention: nn.Module, place: str) -> bool:
    """Whether it has a matrix, or its packed form: a linear layer, perhaps quantized or with LoRA."""
    module = attention.get_submodule(place.partition(_AGAIN)[0])
    tensors = [*module.parameters(), *module.buffers()]
    return any(tensor.ndim == 2 for tensor in tensors)


def _outermost(names: list[str]) -> str:
    """The first name that is inside no other one."""
    return next(name for name in names if not any(name.startswith(f"{other}.") for other in names))


def _outputs(attention: nn.Module, call: Call, length: int) -> dict[str, Tensor]:
    """The outputs of submodules, by place, if they have features for each token."""
    outputs: dict[str, Any] = {}
    _replay(attention, call, length, outputs=outputs)
    return {place: output for place, output in outputs.items() if _of_tokens(output, length) is not None}


def _carried(attention: nn.Module, call: Call, place: str, output: Tensor, length: int) -> Reached:
    """What the features of a submodule's output reach: for each feature there, its number here, or -1."""
    count = output.numel() // (output.size(0) * length)
    digits, power = [], 1
    while power < count:
        digits.append(power)
        power *= _BASE
    numbers = torch.arange(count, device=output.device)
    ones = _replay(attention, call, length, place, torch.ones_like(numbers))
    reached = Reached({}, {})
    for digit in digits or [1]:
        codes = _replay(attention, call, length, place, numbers // digit % _BASE + _FIRST)
        _add_digits(reached.slots, ones.tensors, codes.tensors, digit)
        _add_digits(reached.inputs, ones.inputs, codes.inputs, digit)
    return Reached(_arrived(reached.slots), _arrived(reached.inputs))


def _add_digits(numbers: dict[str, Tensor], ones: Mapping[str, Tensor], codes: Mapping[str, Tensor], unit: int) -> None:
    """Add a digit of the numbers that arrive, -inf where none does."""
    for key in codes.keys() & ones.keys():
        ratio = codes[key][0, 0].double() / ones[key][0, 0].double()
        code = ratio.round()
        valid = ((ratio - code).abs() < _TOLERANCE) & (code >= _FIRST) & (code < _FIRST + _BASE)
        numbers[key] = numbers.get(key, 0) + torch.where(valid, (code - _FIRST) * unit, -torch.inf)


def _arrived(numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {key: torch.where(number.isfinite(), number, -1).long().cpu() for key, number in numbers.items()}
    return {key: number for key, number in found.items() if bool((number >= 0).any())}


def _replay(
    attention: nn.Module,
    call: Call,
    length: int,
    injected: str | None = None,
    codes: Tensor | None = None,
    outputs: dict[str, Any] | None = None,
) -> Seen:
    """Run an attention layer alone, up to the interface; the codes replace the features of one submodule's output.

    Places are names of submodules; later calls of the same one are ``name#2``, ``name#3``, ...
    """
    seen: list[Seen] = []
    inputs: dict[str, Tensor] = {}
    outputs = {} if outputs is None else outputs
    calls: Counter[str] = Counter()

    def observer(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
        seen.append(_seen(query, key, value, mask))
        raise _Stop

    def keep(name: str) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
            calls[name] += 1
            place = name if calls[name] == 1 else f"{name}{_AGAIN}{calls[name]}"
            outputs[place] = output
            features = _of_tokens(args[0], length) if args else None
            if features is not None:
                inputs[place] = features.detach().clone()
            return _replaced(output, codes, length) if place == injected and codes is not None else None

        return hook

    with observed(observer), _hooks(attention, keep), suppress(_Stop):
        attention(*call.args, **call.kwargs)
    if not seen:
        raise UserError(f"model: {type(attention).__name__} does not run alone, so that its projections are not found")
    return seen[0]._replace(inputs=inputs)


def _replaced(output: Tensor, codes: Tensor, length: int) -> Tensor:
    """An output whose features are the codes, at each token."""
    axis = token_axis(output, length)
    assert axis is not None
    of_tokens = (codes.to(output.dtype) * _UNIT).expand(output.size(0), length, -1)
    return as_output(of_tokens, output, axis).clone()


def _of_tokens(value: Any, length: int) -> Tensor | None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    axis = token_axis(value, length)
    return None if axis is None else by_token(value, axis)


@contextmanager
def _hooks(attention: nn.Module, make: Callable[[str], Callable[..., Any]]) -> Iterator[None]:
    """A forward hook on each submodule."""
    handles = [module.register_forward_hook(make(name)) for name, module in attention.named_modules() if name]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
