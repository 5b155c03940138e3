"""Whether an architecture of transformers can be adapted, and whether what is promised of adapted models holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from architectures import ARCHITECTURES, tiny_model
from torch import Tensor, nn

from ssa.adapter.adapt import adapt, adaptation, disable
from ssa.adapter.layer import LayerTemperatures, adapted_layers
from ssa.errors import UserError

TABLE = "docs/adapter_architectures.md"
NEW_TOKENS = 8  # more than the sliding window of tiny models, 6
CHECKS = ("identity", "start", "moved", "gradients", "cache", "padding", "visible keys")
_BASE_DIFFERS = "base differs too"


@dataclass
class Judgment:
    """What was found of an architecture.

    Attributes:
        status: ``adapted``, ``refused``, or ``no tiny model``.
        reason: why it is not adapted.
        layers: how many of its layers have temperatures, as text.
        implementation: of its attention.
        checks: by name in `CHECKS`, ``ok`` or what is wrong.
    """

    status: str
    reason: str = ""
    layers: str = ""
    implementation: str = ""
    checks: dict[str, str] = field(default_factory=dict)

    @property
    def faults(self) -> dict[str, str]:
        """The checks that failed."""
        return {name: found for name, found in self.checks.items() if found not in ("ok", _BASE_DIFFERS)}


def judge(model_type: str) -> Judgment:
    """Build a tiny model of this type and check all that is promised."""
    try:
        model = tiny_model(model_type)
    except Exception as error:
        return Judgment("no tiny model", _line(error))
    ids = torch.randint(3, 100, (2, 17), generator=torch.Generator().manual_seed(1))
    try:
        adapt(model, "token")
    except UserError as error:
        return Judgment("refused", _line(error).removeprefix("model: "))
    before = _logits(tiny_model(model_type), ids)
    checks = {"identity": _same(_logits(model, ids), before)}
    model = adapt(tiny_model(model_type))
    found = adaptation(model)
    assert found is not None
    total = found.n_layer + found.n_other
    start = _logits(model, ids)
    checks["start"] = _within((start - before).abs().max().item(), 2e-3 * before.std().item())
    move(model)
    moved = model(input_ids=ids, use_cache=False).logits
    checks["moved"] = "ok" if (moved - before).abs().max() > 1e-6 else "same logits"
    checks["gradients"] = _gradients(model, moved)
    checks["cache"] = _cached(model, ids)
    checks["padding"] = _padded(model, ids)
    checks["visible keys"] = _visible(model_type, ids)
    return Judgment("adapted", "", f"{found.n_layer} of {total}", found.base, checks)


def move(model: nn.Module, scale: float = 0.5) -> None:
    """Draw the parameters of all temperatures anew."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            for parameter in layer.parameters():
                parameter.normal_(std=scale, generator=generator)


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def _same(one: Tensor, other: Tensor) -> str:
    return "ok" if torch.equal(one, other) else f"differs by {(one - other).abs().max():.1e}"


def _within(value: float, limit: float) -> str:
    return "ok" if value <= limit else f"{value:.1e}, more than {limit:.1e}"


def _gradients(model: nn.Module, logits: Tensor) -> str:
    logits.float().log_softmax(-1)[..., 5].sum().backward()
    parameters = {
        f"{name}.{one}": p for name, layer in adapted_layers(model).items() for one, p in layer.named_parameters()
    }
    missing = [name for name, p in parameters.items() if p.grad is None or not bool((p.grad != 0).any())]
    return f"none for {missing[0]}" if missing else "ok"


def _cached(model: Any, ids: Tensor) -> str:
    return _compared(model, lambda: [_generated(model, ids, use_cache=use_cache) for use_cache in (True, False)])


def _padded(model: Any, ids: Tensor) -> str:
    batch = ids.clone()
    batch[1, :5] = 0
    mask = (torch.arange(ids.size(1)) >= torch.tensor([[0], [5]])).long()
    return _compared(
        model, lambda: [_generated(model, ids[1:, 5:]), _generated(model, batch, attention_mask=mask).row(1)]
    )


class Generated(NamedTuple):
    """New tokens (B, n), and the logits of the first of them (B, V)."""

    tokens: Tensor
    logits: Tensor

    def row(self, number: int) -> Generated:
        return Generated(self.tokens[number : number + 1], self.logits[number : number + 1])


def _compared(model: Any, two_ways: Callable[[], list[Generated]]) -> str:
    """Whether two ways to generate agree, if they do in the base model."""
    try:
        with disable(model):
            one, other = two_ways()
    except Exception:
        return _BASE_DIFFERS
    if not torch.equal(one.tokens, other.tokens) or not torch.allclose(one.logits, other.logits, atol=1e-4):
        return _BASE_DIFFERS
    one, other = two_ways()
    return "ok" if torch.equal(one.tokens, other.tokens) else "generates other tokens"


def _generated(model: Any, ids: Tensor, **options: Any) -> Generated:
    mask = options.pop("attention_mask", torch.ones_like(ids))
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    shown = {"return_dict_in_generate": True, "output_logits": True}
    found = model.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=0, **length, **shown, **options)
    return Generated(found.sequences[:, ids.size(1) :], found.logits[0])


def _visible(model_type: str, ids: Tensor) -> str:
    """Counted keys against the attention weights that are not 0, in one pass and token by token."""
    try:
        model = tiny_model(model_type, attn_implementation="eager")
    except (TypeError, ValueError) as error:
        return f"no eager attention: {_line(error)}"
    adapt(model, "constant")
    wrong: list[str] = []

    def compare(layer: LayerTemperatures) -> Any:
        def hook(attention: nn.Module, args: Any, output: Any) -> None:
            tokens = layer.tokens
            assert tokens is not None
            weights = next(one for one in output[1:] if isinstance(one, Tensor) and one.ndim == 4)
            counted = (weights > 0).sum(-1)[:, 0].clamp(min=1)
            if not torch.equal(tokens.visible_keys.expand_as(counted), counted):
                wrong.append(f"{tokens.visible_keys.tolist()} counted in {layer.plan.name}, not {counted.tolist()}")

        return hook

    for name, layer in adapted_layers(model).items():
        model.get_submodule(name).register_forward_hook(compare(layer), prepend=True)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.fill_(1e-3)  # flat maps: none of their weights is too small for a float
    _logits(model, ids)
    with suppress(RuntimeError):  # the base model itself cannot generate
        _generated(model, ids)
    return wrong[0] if wrong else "ok"


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def main() -> None:
    """Write the table of all architectures."""
    judged = {}
    for name in ARCHITECTURES:
        judged[name] = judge(name)
        print(f"{name}: {judged[name].status} {judged[name].faults or ''}", flush=True)
    counts = Counter(one.status for one in judged.values())
    rows = [
        f"| `{name}` | {one.status} | {one.layers} | {one.implementation} | {_remark(one)} |"
        for name, one in judged.items()
    ]
    Path(TABLE).write_text(
        _HEAD.format(
            version=transformers.__version__, tokens=NEW_TOKENS, adapted=counts["adapted"], refused=counts["refused"]
        )
        + "\n".join(rows)
        + "\n",
        encoding="utf-8",
    )


def _remark(found: Judgment) -> str:
    if found.reason:
        return found.reason.replace("|", "\\|")
    differing = [name for name, result in found.checks.items() if result == _BASE_DIFFERS]
    return f"the base model itself fails: {', '.join(differing)}" if differing else ""


_HEAD = """\
# Architectures that `ssa.adapt` was checked on

All causal language models of transformers {version}: {adapted} adapted, {refused} refused. Each is a tiny random
model, in float32 on a CPU. For the adapted ones all of this holds:

- *identity*: with `token`, which starts exactly at 1, the base model's logits bit for bit;
- *start*: with `ssa`, logits within 0.002 standard deviations of the base model's;
- *moved*: other logits once the temperatures have other values;
- *gradients*: none of any temperature's parameters is zero everywhere;
- *cache*: greedy generation of {tokens} tokens is the same with and without;
- *padding*: a row padded on the left generates the tokens of that row alone;
- *visible keys*: n is the number of attention weights above 0, in one pass and token by token, also beyond a sliding
  window.

`pytest -n 0 -m "slow or faults" tests/adapter/test_architectures.py` judges the installed version of transformers, and
`python tests/adapter/judgment.py` writes this table.

| model type | status | layers | attention | remark |
|---|---|---|---|---|
"""

if __name__ == "__main__":
    main()
