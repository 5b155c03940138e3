"""The typed description of a model: its architecture and its temperatures.  Plain values, no torch.

GPT-2, Pythia (GPT-NeoX) and Llama are values of one `ModelConfig`; no code asks which of them it is.  Defaults are
GPT-2's, and no temperature.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

# The words are the keys of BASE_PARTS, TOKEN_PARTS and POSITION_PARTS in ssa/model/temperature.py.
BasePartName = Literal["none", "constant", "yarn", "rms_norm"]
TokenPartName = Literal["none", "shared", "mlp", "frequency", "gate"]
PositionPartName = Literal["none", "log", "released", "released_linear", "ssmax", "qwen_logn", "llama4"]


_SETTINGS = {  # of parts
    "log": ("alpha_init",),
    "mlp": ("mlp_hidden",),
    "released": ("beta_init",),
    "released_linear": ("slope_init",),
    "ssmax": ("ssmax_init",),
    "yarn": ("yarn_factor",),
    "qwen_logn": ("train_length",),
    "llama4": ("floor_length", "floor_scale"),
}
FINE_TUNING_ALPHA = -10.0  # alpha_init where a pretrained model is to be left as it is: tau - 1 is under 0.0004


class Section(BaseModel):
    """Frozen, strict about types, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ScalarTemperature(Section):
    """The inverse temperature of one of query, key, value, output: ``tau = base (1 + token + position)``.

    A part that is ``none`` drops out, so that ``tau`` is 1 where all are.  In the paper (section 3) the base is 1.
    """

    token: TokenPartName = "none"
    position: PositionPartName = "none"
    base: BasePartName = "none"

    @property
    def is_identity(self) -> bool:
        """Whether nothing is scaled."""
        return (self.token, self.position, self.base) == ("none", "none", "none")


class TemperatureConfig(Section):
    """Which of query, key, value and attention output are scaled, and by what.  Null: that one is not scaled.

    ``per``: one temperature a head, or one for the whole layer.  The settings below it are each of one part, named in
    ``conf/model/temperature/none.yaml``, and mean nothing to the others.
    """

    name: Name = "none"
    query: ScalarTemperature | None = None
    key: ScalarTemperature | None = None
    value: ScalarTemperature | None = None
    output: ScalarTemperature | None = None
    per: Literal["head", "layer"] = "head"
    alpha_init: FiniteFloat = -4.5
    mlp_hidden: PositiveInt | None = None
    beta_init: FiniteFloat = 1.5
    slope_init: FiniteFloat = 1.0e-5
    ssmax_init: FiniteFloat = 0.168
    yarn_factor: PositiveFloat = 2.0
    train_length: Annotated[int, Field(gt=1)] = 8192
    floor_length: PositiveInt = 8192
    floor_scale: FiniteFloat = 0.1

    @property
    def scaled(self) -> dict[str, ScalarTemperature]:
        """What is scaled, by its name: ``query``, ``key``, ``value``, ``output``."""
        named = {"query": self.query, "key": self.key, "value": self.value, "output": self.output}
        return {name: parts for name, parts in named.items() if parts is not None and not parts.is_identity}

    @property
    def unused_settings(self) -> set[str]:
        """The settings that no part in use reads."""
        parts = {name for chosen in self.scaled.values() for name in (chosen.token, chosen.position, chosen.base)}
        return {setting for part, settings in _SETTINGS.items() if part not in parts for setting in settings}

    def d_mlp(self, d_model: int) -> int:
        """Width of the first layer of the ``mlp`` part, in a model of this width."""
        return self.mlp_hidden or max(1, d_model // 2)

    @property
    def needs_frequencies(self) -> bool:
        """Whether a part reads how often tokens occur in the training text."""
        return any(parts.token == "frequency" for parts in self.scaled.values())


class RopeScaling(Section):
    """Llama-3's stretch of rotary frequencies beyond the context of pre-training (rope_type ``llama3``)."""

    factor: PositiveFloat
    low_freq_factor: PositiveFloat
    high_freq_factor: PositiveFloat
    original_max_positions: PositiveInt

    @model_validator(mode="after")
    def _bands_are_ordered(self) -> Self:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"model.rope_scaling.low_freq_factor={self.low_freq_factor:g}: "
                f"valid: below model.rope_scaling.high_freq_factor={self.high_freq_factor:g}"
            )
        return self


class ModelConfig(Section):
    """A decoder-only transformer.  ``width``, ``n_layer``, ``n_head``: as in the published size tables.

    Null means: ``n_kv_head``, as many as ``n_head``; ``head_dim``, ``width / n_head``; ``d_ff``, 4 x width (or, of
    a gated MLP, 8/3 x width, down to a multiple of 8); ``vocab_size``, the tokenizer's.
    """

    name: Name
    size: Name
    n_layer: PositiveInt
    n_head: PositiveInt
    d_model: PositiveInt
    n_kv_head: PositiveInt | None = None
    head_dim: PositiveInt | None = None
    d_ff: PositiveInt | None = None
    vocab_size: PositiveInt | None = None
    max_positions: PositiveInt = 1024
    positions: Literal["learned", "rotary"] = "learned"
    rotary_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    rope_theta: PositiveFloat = 10000.0
    rope_scaling: RopeScaling | None = None
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: PositiveFloat = 1.0e-5
    activation: Literal["gelu", "gelu_tanh", "silu"] = "gelu_tanh"
    gated_mlp: bool = False
    parallel_residual: bool = False
    tie_embeddings: bool = True
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    dropout: Fraction = 0.0
    temperature: TemperatureConfig = TemperatureConfig()

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; fewer than ``n_head`` is grouped-query attention."""
        return self.n_kv_head or self.n_head

    @property
    def d_head(self) -> int:
        """Features of a head."""
        return self.head_dim or self.d_model // self.n_head

    @property
    def d_mlp(self) -> int:
        """Width of the MLP's hidden layer."""
        default = max(8, self.d_model * 8 // 3 // 8 * 8) if self.gated_mlp else 4 * self.d_model
        return self.d_ff or default

    @property
    def d_rotary(self) -> int:
        """Features of a head that are rotated; an even number, 0 with learned positions."""
        return int(self.d_head * self.rotary_fraction) // 2 * 2 if self.positions == "rotary" else 0

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.head_dim is None and self.d_model % self.n_head:
            valid = divisors(self.d_model)
            raise ValueError(
                f"model.n_head={self.n_head}: does not divide model.d_model={self.d_model}; valid: {valid}"
            )
        if self.n_head % self.kv_heads:
            valid = divisors(self.n_head)
            raise ValueError(
                f"model.n_kv_head={self.n_kv_head}: does not divide model.n_head={self.n_head}; valid: {valid}"
            )
        if self.positions == "rotary" and self.d_rotary == 0:
            raise ValueError(
                f"model.rotary_fraction={self.rotary_fraction:g}: rotates less than 2 of a head's {self.d_head} "
                f"features; valid: {min(1, 2 / self.d_head):g} to 1, of a model.head_dim of 2 or more"
            )
        return self


def divisors(number: int) -> str:
    """All of them, for an error message."""
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
