"""The terms that temperature rules are made of: those of SSA, of the paper's comparisons, and of related work.

`TERMS` is their table; `ssa.model.temperature` combines them.

Letters: B batch, H heads, T tokens, d head_dim, D d_model; G is H, or 1 with one temperature for the whole layer.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssa.model.config import TemperatureConfig
from ssa.model.sharding import draw_normal

INIT_STD = 0.02  # GPT-2's
TOLERANCE = 1e-3  # a temperature within it of 1 at up to `_IDENTITY_KEYS` keys counts as the identity
_IDENTITY_KEYS = 1024
_RMS_EPS = 1e-6


class Shape(NamedTuple):
    """Sizes of a layer, for one of its projections."""

    n_head: int  # H; for key and value, their own number in grouped-query attention
    head_dim: int  # d
    d_model: int  # D


class Tokens(NamedTuple):
    """What a temperature can read besides the features that it scales."""

    hidden: Tensor  # x: the normalized hidden states that the layer's projections read, (B, T, D)
    visible_keys: Tensor  # n: the number of keys each token's query sees, its own included, (T,) or (B, T)
    log_frequency: Tensor | None = None  # of each token in the training text, standardized, (B, T)


class Term(nn.Module):
    """A term of a temperature: a function of features (B, T, H, d) and `Tokens`, broadcastable to (B, T, H, 1).

    Args:
        shape: of the layer.
        config: ``per`` head or layer, and the settings of all terms.
    """

    slot: ClassVar[str]  # "token" or "position", added to 1, or "multiplier"
    starts_at_identity: bool = True  # within `TOLERANCE`
    per_feature: ClassVar[bool] = False  # of shape (B, T, H, d)

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__()
        self.groups = shape.n_head if config.per == "head" else 1  # G
        self._starts: list[float | None] = []

    def learned(self, *size: int, start: float | None = 0.0) -> nn.Parameter:
        """A parameter that starts at this value, or, with None, is drawn from normal(0, 0.02); empty until then."""
        self._starts.append(start)
        return nn.Parameter(torch.empty(size))

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """The term's value."""
        raise NotImplementedError

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Sets all parameters to their start values; random ones are drawn from ``generator``."""
        for parameter, start in zip(self.parameters(), self._starts, strict=True):
            if start is None:
                draw_normal(parameter, INIT_STD, generator)
            else:
                parameter.fill_(start)


class LengthTerm(Term):
    """A function of n, the number of visible keys, with one learned scalar for each head or layer.  Parameters: G."""

    slot = "position"
    scalar: ClassVar[str]  # the scalar's name
    start: ClassVar[float] = 0.0  # its start value
    setting: ClassVar[str | None] = None  # the field of `TemperatureConfig` that has it instead

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        start: float = getattr(config, self.setting) if self.setting else self.start
        self.register_parameter(self.scalar, self.learned(self.groups, start=start))
        self.starts_at_identity = abs(self.value_at(start, _IDENTITY_KEYS)) < TOLERANCE

    def value(self, scalar: Tensor, n: Tensor) -> Tensor:
        """The term, elementwise."""
        raise NotImplementedError

    def value_at(self, scalar: float, n: int) -> float:
        """The term as a number, in float64."""
        numbers = (torch.tensor(number, dtype=torch.float64, device="cpu") for number in (scalar, n))
        return self.value(*numbers).item()

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (1 or B, T, G, 1)."""
        scalar: Tensor = getattr(self, self.scalar)  # a plain tensor under torch.func
        return self.value(scalar[:, None], over_heads(tokens.visible_keys.to(scalar.dtype)))


def over_heads(tokens: Tensor) -> Tensor:
    """(T,) or (B, T) -> (1 or B, T, 1, 1)."""
    return tokens.reshape(-1, tokens.size(-1), 1, 1)


# Token-aware terms: deviations from 1 that depend on the token.


class SharedProjection(Term):
    """``tanh(w . gelu(W x))``, weight-shared: it reads ``W x``, the query, key or value itself.  The paper's tau_tok.

    Start: ``w = 0``, exactly the identity, where the gradient of ``w`` is not zero.
    Parameters: ``w``, H d (per layer, one dot product over all heads' features: also H d).
    """

    slot = "token"

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.weight = self.learned(shape.n_head, shape.head_dim)  # (H, d)
        self.per_head = config.per == "head"

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """(B, T, H, d) -> (B, T, G, 1)."""
        precise = features.to(self.weight.dtype)
        score: Tensor = _TokenScore.apply(precise, self.weight)  # type: ignore[no-untyped-call]  # (B, T, H, 1)
        return torch.tanh(score if self.per_head else score.sum(dim=2, keepdim=True))


class _TokenScore(torch.autograd.Function):
    """``w . gelu(x)``, (B, T, H, d), (H, d) -> (B, T, H, 1).  The backward pass computes gelu again, so that a layer
    keeps nothing but x, the query, key or value itself.

    Gelu's input is transposed, so that the CPU has the same kernel for features of fused and of separate projections.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return (F.gelu(x.transpose(-3, -2)).transpose(-3, -2) * weight).sum(-1, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        across = x.transpose(-3, -2)
        of_x = torch.ops.aten.gelu_backward((gradient * weight).transpose(-3, -2), across).transpose(-3, -2)
        of_weight = (gradient * F.gelu(across).transpose(-3, -2)).sum(tuple(range(x.ndim - 2)))
        return of_x, of_weight


class OwnMLP(Term):
    """``tanh(w . gelu(U x))`` with its own first layer ``U``, ``mlp_hidden`` wide: tau_tok without weight sharing.

    Start: ``w = 0``, ``U`` normal(0, 0.02).  No biases; ``mlp_hidden`` is half of D by default.
    Parameters: ``U``, mlp_hidden D; ``w``, G mlp_hidden.
    """

    slot = "token"

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        hidden = config.hidden_width(shape.d_model)
        self.first = self.learned(hidden, shape.d_model, start=None)  # (hidden, D)
        self.weight = self.learned(self.groups, hidden)  # (G, hidden)

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (B, T, G, 1)."""
        inner = F.gelu(F.linear(tokens.hidden.to(self.first.dtype), self.first))  # (B, T, hidden)
        return torch.tanh(F.linear(inner, self.weight)).unsqueeze(-1)


class Frequency(Term):
    """``tanh(a z + b)``, z the log-frequency of the token in the training text, standardized over that text.

    The paper's "feature-based" comparison; the form is ours.  Start: ``a = b = 0``, exactly the identity.
    Parameters: ``a`` and ``b``, 2 G.
    """

    slot = "token"

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.slope = self.learned(self.groups)
        self.bias = self.learned(self.groups)

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (B, T, G, 1)."""
        assert tokens.log_frequency is not None, "the transformer provides it if a temperature reads it"
        z = over_heads(tokens.log_frequency.to(self.slope.dtype))
        return torch.tanh(self.slope[:, None] * z + self.bias[:, None])


def standardized_log_counts(counts: Tensor) -> Tensor:
    """Add-one log-frequencies of tokens, standardized to mean 0 and variance 1 over the text.

    Args:
        counts: how often each token occurs in it, (V,).

    Returns:
        (V,), float64.
    """
    weights = counts.double() / counts.sum()
    values = (counts.double() + 1).log()
    mean = (weights * values).sum()
    std = (weights * (values - mean).square()).sum().sqrt().clamp(min=1e-12)
    return (values - mean) / std


class Gate(Term):
    """``sigmoid(w . x) - 1``: headwise gated attention (arXiv 2505.06708) when it scales the attention output.

    Start: ``w`` normal(0, 0.02), so that the gates are near 1/2, not the identity.  Parameters: ``w``, G D.
    """

    slot = "token"
    starts_at_identity = False

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.weight = self.learned(self.groups, shape.d_model, start=None)  # (G, D)

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (B, T, G, 1)."""
        gate = torch.sigmoid(F.linear(tokens.hidden.to(self.weight.dtype), self.weight))  # (B, T, G)
        return gate.unsqueeze(-1) - 1


class TanhGate(Term):
    """``tanh(w . x)``: gated attention that starts at the identity, for pretrained models; 1 + tanh(z) is
    2 sigmoid(2 z), so that `Gate`'s form is doubled.  Ours.

    Start: ``w = 0``, exactly the identity.  Parameters: ``w``, G D.
    """

    slot = "token"

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.weight = self.learned(self.groups, shape.d_model)  # (G, D)

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (B, T, G, 1)."""
        return torch.tanh(F.linear(tokens.hidden.to(self.weight.dtype), self.weight)).unsqueeze(-1)


# Position-aware terms: deviations from 1 that depend on n, the number of visible keys.  Larger n, spikier maps.


class LogN(LengthTerm):
    """``sigmoid(alpha) log(n)``: the paper's tau_pos, less 1.

    The identity is ``alpha = -inf``.  ``alpha_init = -4.5`` is a slope of 0.011, where the authors' released GPT-2
    code starts (``exp(-exp(1.5)) = 0.0113``): tau is at most 1.077 at n = 1,024.
    """

    scalar, setting = "alpha", "alpha_init"

    def value(self, scalar: Tensor, n: Tensor) -> Tensor:
        return torch.sigmoid(scalar) * n.log()


class Released(LengthTerm):
    """``exp(-exp(beta)) log(n)``: the authors' released code, where beta starts at 1.5 (GPT-2) or 2.0 (NeoX, Llama).

    It saturates: above about beta = 4.7, value and gradient are 0 in float32.
    """

    scalar, setting = "beta", "beta_init"

    def value(self, scalar: Tensor, n: Tensor) -> Tensor:
        return torch.exp(-torch.exp(scalar)) * n.log()


class ReleasedLinear(LengthTerm):
    """``beta log(n)``: the second form in the authors' released code, where beta starts at 1e-5."""

    scalar, setting = "beta", "slope_init"

    def value(self, scalar: Tensor, n: Tensor) -> Tensor:
        return scalar * n.log()


class SSMax(LengthTerm):
    """``s log(n) - 1``, so that tau is ``s log(n)``: Scalable-Softmax (arXiv 2501.19399).

    ``ssmax_init = 0.168`` is 1 over the mean of log(n) for n up to 1,024 (ours; we do not know the paper's start): near
    vanilla on average, but no value of s is the identity.
    """

    scalar, setting = "s", "ssmax_init"

    def value(self, scalar: Tensor, n: Tensor) -> Tensor:
        return scalar * n.log() - 1


# Multipliers: factors that do not depend on n.


class Constant(Term):
    """``c``, one learned scalar for each head or layer, 1 at the start.  The paper's "constant" comparison.

    Parameters: G.
    """

    slot = "multiplier"

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.weight = self.learned(self.groups, start=1.0)

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (1, 1, G, 1)."""
        return self.weight[None, None, :, None]


class Yarn(Term):
    """``0.1 ln(yarn_factor) + 1``, YaRN's attention factor (arXiv 2309.00071): yarn_factor is the new context over that
    of pre-training.  On query and key, as in YaRN, logits are multiplied by its square.

    No parameters.  The identity if ``yarn_factor`` is at most 1.
    """

    slot = "multiplier"

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.factor = 0.1 * math.log(max(config.yarn_factor, 1.0)) + 1
        self.starts_at_identity = self.factor == 1

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (1, 1, 1, 1)."""
        precise = torch.promote_types(features.dtype, torch.float32)
        return torch.full((1, 1, 1, 1), self.factor, dtype=precise, device=features.device)


class RMSNorm(Term):
    """``g / rms(q)``: qk-norm as in Qwen3 when it scales query and key: each head's features at root mean square 1,
    times a learned g shared by all heads, 1 at the start.  Not the identity.  Parameters: d.
    """

    slot = "multiplier"
    starts_at_identity = False
    per_feature = True

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.weight = self.learned(shape.head_dim, start=1.0)

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """(B, T, H, d) -> (B, T, H, d)."""
        precise = features.to(self.weight.dtype)
        return self.weight * torch.rsqrt(precise.square().mean(-1, keepdim=True) + _RMS_EPS)


TERMS: dict[str, type[Term]] = {
    "shared": SharedProjection,
    "mlp": OwnMLP,
    "frequency": Frequency,
    "gate": Gate,
    "tanh_gate": TanhGate,
    "log": LogN,
    "released": Released,
    "released_linear": ReleasedLinear,
    "ssmax": SSMax,
    "constant": Constant,
    "yarn": Yarn,
    "rms_norm": RMSNorm,
}
