"""The rules that SSA is compared with, as parts of a temperature: those in the paper, and those of its neighbors.

Letters and contract: `ssa.model.temperature_terms`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssa.model.config import TemperatureConfig
from ssa.model.temperature_terms import AT_IDENTITY, INIT_STD, Part, Shape, Slope, Tokens, groups, over_heads, precise

RMS_EPS = 1e-6


# Token-aware parts: deviations from 1 that depend on the token.


class Frequency(Part):
    """``tanh(a z + b)``, z the log-frequency of the token in the training text, standardized over that text.

    The paper's "feature-based" comparison; the form is ours.  ``a = b = 0`` at the start: the identity, exactly.
    Parameters: ``a`` and ``b``, 2 G.
    """

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.slope = nn.Parameter(torch.zeros(groups(shape, config)))
        self.bias = nn.Parameter(torch.zeros(groups(shape, config)))

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (B, G, T, 1)."""
        assert tokens.log_frequency is not None, "the transformer provides it where a temperature reads it"
        z = over_heads(tokens.log_frequency.to(self.slope.dtype))
        return torch.tanh(self.slope[:, None, None] * z + self.bias[:, None, None])


class Gate(Part):
    """``sigmoid(w . x) - 1``: headwise gated attention (arXiv 2505.06708), where it scales the attention's output.

    ``w`` is normal(0, 0.02) at the start: the gates are near 1/2, not at the identity.  Parameters: ``w``, G D.
    """

    starts_at_identity = False

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.weight = nn.Parameter(torch.empty(groups(shape, config), shape.d_model))  # (G, D)

    def initialize(self, generator: torch.Generator) -> None:
        """``w``."""
        self.weight.normal_(0.0, INIT_STD, generator=generator)

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (B, G, T, 1)."""
        gate = torch.sigmoid(F.linear(tokens.hidden.to(self.weight.dtype), self.weight))  # (B, T, G)
        return gate.transpose(1, 2).unsqueeze(-1) - 1


# Position-aware parts: deviations from 1 that depend on n, the number of visible keys.


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

    def start(self, config: TemperatureConfig) -> float:
        """``ssmax_init``."""
        return config.ssmax_init

    def slope(self, raw: Tensor) -> Tensor:
        """The s itself."""
        return raw

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (1 or B, G, T, 1)."""
        return super().forward(features, tokens) - 1

    def deviation(self, raw: float, n: int) -> float:
        """As `Slope` has it."""
        return super().deviation(raw, n) - 1


class QwenLogN(Part):
    """``max(log(n) / log(train_length), 1) - 1``: the log-n scaling of Qwen-1 (``use_logn_attn`` in its code).

    No parameters.  The identity as long as a query sees at most ``train_length`` keys.
    """

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.train_length = config.train_length
        self.starts_at_identity = self.is_identity_up_to(AT_IDENTITY)

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (1 or B, 1, T, 1)."""
        return (tokens.log_n(precise(features)) / math.log(self.train_length) - 1).clamp(min=0)

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
        self.starts_at_identity = self.is_identity_up_to(AT_IDENTITY)

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (1 or B, 1, T, 1)."""
        steps = (tokens.visible // self.floor_length).to(precise(features))
        return self.floor_scale * over_heads(steps).log1p()

    def is_identity_up_to(self, n: int) -> bool:
        """Below ``floor_length`` keys."""
        return n < self.floor_length or self.floor_scale == 0


# Bases: factors that do not depend on n, 1 where absent.


class Constant(Part):
    """``c``, one learned scalar a head or layer, 1 at the start.  The paper's "constant" comparison.  Parameters: G."""

    def __init__(self, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__(shape, config)
        self.weight = nn.Parameter(torch.ones(groups(shape, config)))

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """-> (1, G, 1, 1)."""
        return self.weight[None, :, None, None]


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
        """-> (1, 1, 1, 1)."""
        return torch.full((1, 1, 1, 1), self.factor, dtype=precise(features), device=features.device)

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


TOKEN_RULES: dict[str, type[Part]] = {"frequency": Frequency, "gate": Gate}
POSITION_RULES: dict[str, type[Part]] = {
    "released": Released,
    "released_linear": ReleasedLinear,
    "ssmax": SSMax,
    "qwen_logn": QwenLogN,
    "llama4": Llama4,
}
BASE_RULES: dict[str, type[Part]] = {"constant": Constant, "yarn": Yarn, "rms_norm": RMSNorm}
