"""Inverse temperatures: the paper's idea.  Selective Self-Attention, arXiv 2411.12892, section 3.

In this project *temperature* always means the *inverse* temperature tau that multiplies a query, key or value:

    q_i <- tau_q(x_i, i) q_i        k_j <- tau_k(x_j, j) k_j        v_j <- tau_v(x_j, j) v_j
    tau(x, n) = tau_tok(x) + tau_pos(n)
    tau_tok(x) = tanh(w . gelu(W x))              W: the projection the layer already has ("weight sharing")
    tau_pos(n) = 1 + sigmoid(alpha) log(n)        n = 1, 2, ... = the number of keys the query can see

A larger tau_q makes the attention map of that query spikier; a tau_v near 0 mutes a token.  Only the vectors w and
the scalars alpha are new.

Every rule that SSA is compared with is a temperature too, of at most three parts, each absent where it is ``none``:

    tau = base (1 + token + position)

``token`` and ``position`` are deviations from 1, the identity; ``base`` multiplies.  A rule is one class below and one
file in ``conf/model/temperature``; what is scaled (query, key, value, or the output of attention) is the file's choice.

Letters: B batch, H heads, T tokens, d head_dim, D width; G is H, or 1 with one temperature for the whole layer.
Everything here is in the parameters' dtype, float32, also under bf16 autocast: near the identity a bf16 temperature
takes only a few values over 2,048 positions.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssa.model_config import ScalarTemperature, TemperatureConfig

INIT_STD = 0.02  # of the matrices that some rules bring; GPT-2's
RMS_EPS = 1e-6


class Shape(NamedTuple):
    """Of the layer, and of what is scaled in it."""

    n_head: int  # H: the key's and value's own number in grouped-query attention
    head_dim: int  # d
    width: int  # D


class Tokens(NamedTuple):
    """What a temperature may know of tokens besides the features that it scales."""

    hidden: Tensor  # x: the normalised hidden states that the layer's projections read, (B, T, D)
    visible: Tensor  # n: how many keys each token's query can see, itself among them, (T,) or (B, T)
    log_frequency: Tensor | None = None  # of each token in the training text, standardised, (B, T)

    def log_n(self, dtype: torch.dtype) -> Tensor:
        """log n, broadcastable to (B, H, T, 1)."""
        return _over_heads(self.visible.to(dtype)).log()


class Part(nn.Module):
    """A part of a temperature: a function of features (B, H, T, d) and `Tokens`, broadcastable to (B, H, T, 1).

    Args:
        shape: of the layer.
        config: ``per`` head or layer, and the settings of all parts.
    """

    starts_at_identity: bool = True  # exactly, or within what its start value says

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__()

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """The part's value."""
        raise NotImplementedError

    def initialise(self, generator: torch.Generator) -> None:
        """Draws what does not start at a constant."""

    def is_identity_up_to(self, n: int) -> bool:
        """Whether it changes nothing, whatever its parameters, as long as queries see at most n keys."""
        return False


def _groups(shape: Shape, config: TemperatureConfig) -> int:
    return shape.n_head if config.per == "head" else 1


def _precise(features: Tensor) -> torch.dtype:
    return torch.promote_types(features.dtype, torch.float32)


def _over_heads(tokens: Tensor) -> Tensor:
    """(T,) or (B, T) -> (1 or B, 1, T, 1)."""
    return tokens.reshape(-1, 1, tokens.size(-1), 1)


# Token-aware parts: deviations from 1 that depend on the token.


class Shared(Part):
    """``tanh(w . gelu(W x))``, weight-shared: it reads ``W x``, the query, key or value itself.  The paper's tau_tok.

    ``w = 0`` at the start: the identity, exactly, and the gradient of ``w`` is not zero there.
    Parameters: ``w``, H d (per layer, one dot product over all heads' features: as many).
    """

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.weight = nn.Parameter(torch.zeros(shape.n_head, shape.head_dim))  # (H, d)
        self.per_head = config.per == "head"

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """(B, H, T, d) -> (B, G, T, 1)."""
        precise = features.to(self.weight.dtype)
        score = F.gelu(precise) @ self.weight.unsqueeze(-1)  # (B, H, T, 1)
        return torch.tanh(score if self.per_head else score.sum(dim=1, keepdim=True))


class MLP(Part):
    """``tanh(w . gelu(U x))``, its first layer ``U`` its own, ``mlp_hidden`` wide: tau_tok without weight sharing.

    ``w = 0`` at the start, ``U`` normal(0, 0.02), without biases; ``mlp_hidden`` is half the width by default.
    Parameters: ``U``, mlp_hidden D; ``w``, G mlp_hidden.
    """

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        hidden = config.mlp_hidden or max(1, shape.width // 2)
        self.first = nn.Parameter(torch.empty(hidden, shape.width))  # (hidden, D)
        self.weight = nn.Parameter(torch.zeros(_groups(shape, config), hidden))  # (G, hidden)

    def initialise(self, generator: torch.Generator) -> None:
        """``U``."""
        self.first.normal_(0.0, INIT_STD, generator=generator)

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (B, G, T, 1)."""
        inner = F.gelu(F.linear(tokens.hidden.to(self.first.dtype), self.first))  # (B, T, hidden)
        return torch.tanh(F.linear(inner, self.weight)).transpose(1, 2).unsqueeze(-1)


class Frequency(Part):
    """``tanh(a z + b)``, z the log-frequency of the token in the training text, standardised over that text.

    The paper's "feature-based" comparison; the form is ours.  ``a = b = 0`` at the start: the identity, exactly.
    Parameters: ``a`` and ``b``, 2 G.
    """

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.slope = nn.Parameter(torch.zeros(_groups(shape, config)))
        self.bias = nn.Parameter(torch.zeros(_groups(shape, config)))

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (B, G, T, 1)."""
        assert tokens.log_frequency is not None, "the transformer provides it where a temperature reads it"
        z = _over_heads(tokens.log_frequency.to(self.slope.dtype))
        return torch.tanh(self.slope[:, None, None] * z + self.bias[:, None, None])


class Gate(Part):
    """``sigmoid(w . x) - 1``: headwise gated attention (arXiv 2505.06708), where it scales the attention's output.

    ``w`` is normal(0, 0.02) at the start: the gates are near 1/2, not at the identity.  Parameters: ``w``, G D.
    """

    starts_at_identity = False

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.weight = nn.Parameter(torch.empty(_groups(shape, config), shape.width))  # (G, D)

    def initialise(self, generator: torch.Generator) -> None:
        """``w``."""
        self.weight.normal_(0.0, INIT_STD, generator=generator)

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (B, G, T, 1)."""
        gate = torch.sigmoid(F.linear(tokens.hidden.to(self.weight.dtype), self.weight))  # (B, T, G)
        return gate.transpose(1, 2).unsqueeze(-1) - 1


# Position-aware parts: deviations from 1 that depend on n, the number of visible keys.


class Slope(Part):
    """``slope(raw) log(n)`` with one learned ``raw`` a head or layer: longer contexts get spikier maps, against
    attention dilution.  Parameters: G.
    """

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.register_parameter(self.name, nn.Parameter(torch.full((_groups(shape, config),), self.start(config))))

    name: ClassVar[str]

    def start(self, config: TemperatureConfig) -> float:
        """The start value of ``raw``."""
        raise NotImplementedError

    def slope(self, raw: Tensor) -> Tensor:
        """(G,) -> (G,)."""
        raise NotImplementedError

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (1 or B, G, T, 1)."""
        raw: Tensor = self.get_parameter(self.name)
        return self.slope(raw)[:, None, None] * tokens.log_n(raw.dtype)


class Log(Slope):
    """``sigmoid(alpha) log(n)``: the paper's tau_pos, less 1.

    The identity is ``alpha = -inf``.  ``alpha_init = -4.5`` is a slope of 0.011, where the authors' released GPT-2
    code starts (``exp(-exp(1.5)) = 0.0113``): tau is at most 1.077 at n = 1,024.
    """

    name = "alpha"

    def start(self, config: TemperatureConfig) -> float:
        """``alpha_init``."""
        return config.alpha_init

    def slope(self, raw: Tensor) -> Tensor:
        """sigmoid(alpha)."""
        return torch.sigmoid(raw)


class Released(Slope):
    """``exp(-exp(beta)) log(n)``, the authors' released code, where beta starts at 1.5 (GPT-2) or 2.0 (NeoX, Llama).

    It saturates: from about beta = 4.7 on, value and gradient are 0 in float32.
    """

    name = "beta"

    def start(self, config: TemperatureConfig) -> float:
        """``beta_init``."""
        return config.beta_init

    def slope(self, raw: Tensor) -> Tensor:
        """exp(-exp(beta))."""
        return torch.exp(-torch.exp(raw))


class ReleasedLinear(Slope):
    """``beta log(n)``, the second form in the authors' released code, where beta starts at 1e-5."""

    name = "beta"

    def start(self, config: TemperatureConfig) -> float:
        """``slope_init``."""
        return config.slope_init

    def slope(self, raw: Tensor) -> Tensor:
        """Beta itself."""
        return raw


class SSMax(Slope):
    """``s log(n) - 1``, so that tau is ``s log(n)``: Scalable-Softmax (arXiv 2501.19399), one s a head.

    ``ssmax_init = 0.168`` is 1 over the mean of log(n) for n up to 1,024 (ours; the paper's start is not known to us):
    near vanilla on average, but no value of s is the identity.
    """

    name = "s"
    starts_at_identity = False

    def start(self, config: TemperatureConfig) -> float:
        """``ssmax_init``."""
        return config.ssmax_init

    def slope(self, raw: Tensor) -> Tensor:
        """The s itself."""
        return raw

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (1 or B, G, T, 1)."""
        return super().forward(features, tokens) - 1


class QwenLogN(Part):
    """``max(log(n) / log(train_length), 1) - 1``: the log-n scaling of Qwen-1 (``use_logn_attn`` in its code).

    No parameters.  The identity as long as a query sees at most ``train_length`` keys.
    """

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.train_length = config.train_length

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (1 or B, 1, T, 1)."""
        return (tokens.log_n(_precise(features)) / math.log(self.train_length) - 1).clamp(min=0)

    def is_identity_up_to(self, n: int) -> bool:
        """Up to ``train_length`` keys."""
        return n <= self.train_length


class Llama4(Part):
    """``floor_scale log(floor(n / floor_length) + 1)``: Llama-4's temperature tuning (``attn_scale`` 0.1 and
    ``floor_scale`` 8192 in its code, which has it only in the layers without rotary embedding; here in all).

    No parameters.  The identity as long as a query sees fewer than ``floor_length`` keys.
    """

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.floor_length, self.floor_scale = config.floor_length, config.floor_scale

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (1 or B, 1, T, 1)."""
        steps = (tokens.visible // self.floor_length).to(_precise(features))
        return self.floor_scale * _over_heads(steps).log1p()

    def is_identity_up_to(self, n: int) -> bool:
        """Below ``floor_length`` keys."""
        return n < self.floor_length or self.floor_scale == 0


# Bases: factors that do not depend on n, 1 where absent.


class Constant(Part):
    """``c``, one learned scalar a head or layer, 1 at the start.  The paper's "constant" comparison.  Parameters: G."""

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.weight = nn.Parameter(torch.ones(_groups(shape, config)))

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (G, 1, 1)."""
        return self.weight[:, None, None]


class Yarn(Part):
    """``0.1 ln(yarn_factor) + 1``, YaRN's attention factor (arXiv 2309.00071): yarn_factor is the new context over that
    of pre-training.  On query and key, as there, logits are multiplied by its square.

    No parameters.  The identity where ``yarn_factor`` is at most 1.
    """

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.factor = 0.1 * math.log(max(config.yarn_factor, 1.0)) + 1
        self.starts_at_identity = self.factor == 1

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """A scalar."""
        return torch.full((), self.factor, dtype=_precise(features), device=features.device)

    def is_identity_up_to(self, n: int) -> bool:
        """Where there is no extension."""
        return self.factor == 1


class RMSNorm(Part):
    """``g / rms(q)``: qk-norm as in Qwen3, where it scales query and key: each head's features at root mean square 1,
    then times a learned g, 1 at the start, the same for all heads.  Not the identity.  Parameters: d.
    """

    starts_at_identity = False

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.weight = nn.Parameter(torch.ones(shape.head_dim))

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """(B, H, T, d) -> (B, H, T, d)."""
        precise = features.to(self.weight.dtype)
        return self.weight * torch.rsqrt(precise.square().mean(-1, keepdim=True) + RMS_EPS)


TOKEN_PARTS: dict[str, type[Part]] = {"shared": Shared, "mlp": MLP, "frequency": Frequency, "gate": Gate}
POSITION_PARTS: dict[str, type[Part]] = {
    "log": Log,
    "released": Released,
    "released_linear": ReleasedLinear,
    "ssmax": SSMax,
    "qwen_logn": QwenLogN,
    "llama4": Llama4,
}
BASE_PARTS: dict[str, type[Part]] = {"constant": Constant, "yarn": Yarn, "rms_norm": RMSNorm}


class Temperature(nn.Module):
    """The inverse temperature of one of query, key, value, output: ``base (1 + token + position)``."""

    def __init__(self, parts: ScalarTemperature, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__()
        kinds = {"base": BASE_PARTS, "token": TOKEN_PARTS, "position": POSITION_PARTS}
        chosen = {slot: kind.get(getattr(parts, slot)) for slot, kind in kinds.items()}
        self.parts = nn.ModuleDict({slot: part(shape, config) for slot, part in chosen.items() if part})

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """The temperatures of a batch.

        Args:
            features: the query, key, value or attention output before scaling (and before rotation), (B, H, T, d).
            tokens: what else is known of the tokens.

        Returns:
            float32 (float64 for float64 features), broadcastable to (B, H, T, 1), or to (B, H, T, d) with
            ``rms_norm``.  With a base, the other parts read the features times the base.
        """
        with torch.autocast(features.device.type, enabled=False):
            base, tau = None, torch.ones((), device=features.device)  # a scalar: the parts' dtype wins
            for slot, part in self.parts.items():
                if slot == "base":
                    base = part(features, tokens)
                    features = features * base
                else:
                    tau = tau + part(features, tokens)
            return tau if base is None else base * tau

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draws what does not start at a constant."""
        for part in self._parts():
            part.initialise(generator)

    @property
    def starts_at_identity(self) -> bool:
        """Whether it is 1 before training, exactly or within what the start values say."""
        return all(part.starts_at_identity for part in self._parts())

    def is_identity_up_to(self, n: int) -> bool:
        """Whether it is 1, whatever its parameters, as long as queries see at most n keys."""
        return all(part.is_identity_up_to(n) for part in self._parts())

    def _parts(self) -> list[Part]:
        return [part for part in self.parts.values() if isinstance(part, Part)]


def build_temperatures(config: TemperatureConfig, shape: Shape, kv_heads: int | None = None) -> nn.ModuleDict:
    """The temperatures of one layer by what they scale; an empty dict is vanilla attention.

    Args:
        config: the rule.
        shape: of the layer.
        kv_heads: heads of keys and values, where they are fewer.
    """
    shapes = dict.fromkeys(("key", "value"), shape._replace(n_head=kv_heads or shape.n_head))
    scaled = config.scaled.items()
    return nn.ModuleDict({name: Temperature(parts, shapes.get(name, shape), config) for name, parts in scaled})


def scale(features: Tensor, temperature: Tensor) -> Tensor:
    """(B, H, T, d) times float32 (B, H, T, 1), multiplied in float32, back in the dtype of ``features``."""
    return (features * temperature).to(features.dtype)
