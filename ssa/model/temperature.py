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

``token`` and ``position`` are deviations from 1, the identity; ``base`` multiplies.  A rule is one class, here
or in `ssa.model.temperature_rules`, and one file in ``conf/model/temperature``; what is scaled (query, key, value, or
the output of attention) is the file's choice.

Letters: B batch, H heads, T tokens, d head_dim, D width; G is H, or 1 with one temperature for the whole layer.
Everything here is in the parameters' dtype, float32, also under bf16 autocast: near the identity a bf16 temperature
takes only a few values over 2,048 positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssa.model.config import ScalarTemperature, TemperatureConfig
from ssa.model.temperature_rules import BASE_RULES, POSITION_RULES, TOKEN_RULES
from ssa.model.temperature_terms import INIT_STD, Part, Shape, Slope, Tokens, groups


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
        hidden = config.d_mlp(shape.d_model)
        self.first = nn.Parameter(torch.empty(hidden, shape.d_model))  # (hidden, D)
        self.weight = nn.Parameter(torch.zeros(groups(shape, config), hidden))  # (G, hidden)

    def initialize(self, generator: torch.Generator) -> None:
        """``U``."""
        self.first.normal_(0.0, INIT_STD, generator=generator)

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (B, G, T, 1)."""
        inner = F.gelu(F.linear(tokens.hidden.to(self.first.dtype), self.first))  # (B, T, hidden)
        return torch.tanh(F.linear(inner, self.weight)).transpose(1, 2).unsqueeze(-1)


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


TOKEN_PARTS: dict[str, type[Part]] = {"shared": Shared, "mlp": MLP, **TOKEN_RULES}
POSITION_PARTS: dict[str, type[Part]] = {"log": Log, **POSITION_RULES}
BASE_PARTS: dict[str, type[Part]] = BASE_RULES


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
    def initialize(self, generator: torch.Generator) -> None:
        """Draws what does not start at a constant."""
        for part in self._parts():
            part.initialize(generator)

    @property
    def starts_at_identity(self) -> bool:
        """Whether it is 1 before training, exactly or within what the start values say."""
        return all(part.starts_at_identity for part in self._parts())

    def position_reach(self, moved: float, n: int) -> float | None:
        """How far the position-aware part gets from 0 at n keys, if its learned scalar moves by so much from its start.

        None where it has no such part.  A step of Adam moves a parameter by about the learning rate.
        """
        part = next((part for part in self._parts() if isinstance(part, Slope)), None)
        if part is None:
            return None
        start = part.get_parameter(part.name).flatten()[0].item()
        return max(abs(part.deviation(start + step, n)) for step in (-moved, moved))

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
