"""The architecture and temperatures of a model, as plain values.

GPT-2, Pythia (GPT-NeoX) and Llama are values of one `ModelConfig`; no code asks which of them it is.  Defaults are
GPT-2's, without temperatures.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias, get_args

Projection = Literal["query", "key", "value", "output"]  # what a temperature can scale
PROJECTIONS: tuple[Projection, ...] = get_args(Projection)
SLOTS = ("multiplier", "token", "position")  # the terms of a temperature, in the order of their evaluation
ALPHA_INIT = -4.5  # a slope of 0.011, where the authors' released GPT-2 code starts
FINE_TUNING_ALPHA = -10.0  # leaves a pretrained model as it is: tau - 1 is below 0.0004 up to 1,024 keys

CONSTANTS = {"yarn"}  # terms without parameters
_TERM_SETTINGS = {
    "log": "alpha_init",
    "mlp": "mlp_hidden",
    "released": "beta_init",
    "released_linear": "slope_init",
    "ssmax": "ssmax_init",
    "yarn": "yarn_factor",
}
TOO_LARGE = 2**31  # for any size or count
_OWN_FIELDS = {  # of this project's own transformer
    *("rotary_fraction", "rope_theta", "rope_scaling", "norm", "norm_eps", "activation", "gated_mlp", "d_ff"),
    *("parallel_residual", "qkv_bias", "out_bias", "mlp_bias", "dropout"),
}
_LARGEST_LISTED = 100_000  # with its divisors, in a message
_RANGES: dict[str, Callable[[float], bool]] = {
    "> 0": lambda value: value > 0,
    ">= 0 and < 1": lambda value: 0 <= value < 1,
    "> 0 and <= 1": lambda value: 0 < value <= 1,
}

if TYPE_CHECKING:
    IntOrNull: TypeAlias = int
    FloatOrNull: TypeAlias = float
else:  # null is replaced when the config is made
    IntOrNull, FloatOrNull = int | None, float | None
_NULL: Any = None


def check_divides(field: str, divisor: int, whole_field: str, whole: int) -> None:
    """Raises ValueError, which lists the divisors, if one field does not divide another."""
    if whole % divisor:
        small = whole <= _LARGEST_LISTED
        valid = ", ".join(str(n) for n in range(1, whole + 1) if whole % n == 0) if small else "a divisor of it"
        raise ValueError(f"{field}={divisor}: does not divide {whole_field}={whole}; valid: {valid}")


class _Values:
    """Conversion from and to plain values, for JSON and YAML."""

    __pydantic_config__: ClassVar = {"strict": True, "extra": "forbid"}  # where a run's config contains it

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `plain`.

        Raises:
            ValueError: a key is unknown or missing, or a value is out of range.
        """
        nested: dict[str, Any] = dict.fromkeys(PROJECTIONS, Terms)
        nested |= {"temperature": TemperatureConfig, "rope_scaling": RopeScaling}
        made = {
            key: nested[key].from_plain(value) if key in nested and value is not None else value
            for key, value in values.items()
        }
        try:
            return cls(**made)
        except TypeError as error:
            raise ValueError(f"{cls.__name__}: {error}") from None

    def plain(self) -> dict[str, Any]:
        """All fields as nested plain values."""
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return values

    def _fill(self, defaults: Mapping[str, Any]) -> None:
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def _check(self, section: str, ranges: Mapping[str, str]) -> None:
        """Raises ValueError for a bad name, a number that is not finite, or one out of its range.

        ``ranges``: a key of `_RANGES` -> names of fields.
        """
        range_of = {name: valid for valid, names in ranges.items() for name in names.split()}
        for name, value in vars(self).items():
            valid = range_of.get(name)
            if name in ("name", "size") and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
                raise ValueError(f"{section}.{name}={value}: expected letters, digits, '.', '_' and '-'")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{section}.{name}={json.dumps(value)}: expected a finite number")
            if valid and value is not None and not _RANGES[valid](value):
                raise ValueError(f"{section}.{name}={json.dumps(value)}: out of range; valid: {valid}")
            if isinstance(value, int) and value >= TOO_LARGE:
                raise ValueError(f"{section}.{name}={value}: out of range; valid: > 0 and < {TOO_LARGE}")


@dataclass(frozen=True, kw_only=True)
class Terms(_Values):
    """The terms of one inverse temperature, by name: ``tau = multiplier (1 + token + position)``.

    ``none`` leaves a term out; without terms, ``tau`` is 1.  The paper (section 3) has no multiplier.
    """

    token: str = "none"
    position: str = "none"
    multiplier: str = "none"

    @property
    def chosen(self) -> dict[str, str]:
        """The terms other than ``none``, by slot."""
        return {slot: name for slot in SLOTS if (name := getattr(self, slot)) != "none"}


@dataclass(frozen=True, kw_only=True)
class TemperatureConfig(_Values):
    """The terms of the query's, key's, value's and attention output's temperature; null: not scaled.

    ``per``: one temperature for each head, or one for the whole layer.  Each setting below it belongs to one term, see
    ``conf/model/temperature/none.yaml``; the other terms ignore it.  Null is the default, and for ``alpha_init`` what
    `starting` says.
    """

    name: str = "none"
    query: Terms | None = None
    key: Terms | None = None
    value: Terms | None = None
    output: Terms | None = None
    per: Literal["head", "layer"] = "head"
    alpha_init: float | None = None
    mlp_hidden: int | None = None
    beta_init: FloatOrNull = 1.5
    slope_init: FloatOrNull = 1.0e-5
    ssmax_init: FloatOrNull = 0.168
    yarn_factor: FloatOrNull = 2.0

    def __post_init__(self) -> None:
        self._fill({field.name: field.default for field in fields(self)})
        self._check("model.temperature", {"> 0": "mlp_hidden yarn_factor"})

    def starting(self, pretrained: bool = False) -> Self:
        """With the start value of alpha filled in, from scratch or in a pretrained model."""
        if self.alpha_init is not None:
            return self
        return replace(self, alpha_init=FINE_TUNING_ALPHA if pretrained else ALPHA_INIT)

    @property
    def scaled(self) -> dict[str, Terms]:
        """What is scaled, by `PROJECTIONS`."""
        return {name: terms for name in PROJECTIONS if (terms := getattr(self, name)) is not None and terms.chosen}

    @property
    def is_learned(self) -> bool:
        """Whether a term has parameters."""
        return any(name not in CONSTANTS for terms in self.scaled.values() for name in terms.chosen.values())

    @property
    def unused_settings(self) -> set[str]:
        """The settings that no term in use reads."""
        used = {name for terms in self.scaled.values() for name in terms.chosen.values()}
        return {setting for term, setting in _TERM_SETTINGS.items() if term not in used}

    def hidden_width(self, d_model: int) -> int:
        """Width of the first layer of the ``mlp`` term, in a model of this width."""
        return self.mlp_hidden or max(1, d_model // 2)

    @property
    def needs_frequencies(self) -> bool:
        """Whether a term reads token frequencies of the training text."""
        return any(terms.token == "frequency" for terms in self.scaled.values())


@dataclass(frozen=True, kw_only=True)
class RopeScaling(_Values):
    """Llama 3's scaling of rotary frequencies for contexts beyond pre-training (rope_type ``llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        positive = "factor low_freq_factor high_freq_factor original_max_positions"
        self._check("model.rope_scaling", {"> 0": positive})
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"model.rope_scaling.low_freq_factor={self.low_freq_factor:g}: "
                f"valid: below model.rope_scaling.high_freq_factor={self.high_freq_factor:g}"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Values):
    """A decoder-only transformer.  ``d_model``, ``n_layer``, ``n_head``: as in the published size tables.

    Null means: ``n_kv_head``, as many as ``n_head``; ``head_dim``, ``d_model / n_head``; ``d_ff``, 4 d_model (with a
    gated MLP, 8/3 d_model, rounded down to a multiple of 8); ``vocab_size``, the tokenizer's.  All but the last are
    filled in when the config is made.

    ``hf_config``: the config.json of a model of transformers, ``model=hf``, in whose code the architecture is; the
    other fields then repeat its sizes, and `unused_fields` say nothing.
    """

    name: str
    size: str
    n_layer: int
    n_head: int
    d_model: int
    n_kv_head: IntOrNull = _NULL
    head_dim: IntOrNull = _NULL
    d_ff: IntOrNull = _NULL
    vocab_size: int | None = None
    max_positions: int = 1024
    positions: Literal["learned", "rotary"] = "learned"
    rotary_fraction: float = 1.0
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1.0e-5
    activation: Literal["gelu", "gelu_tanh", "silu"] = "gelu_tanh"
    gated_mlp: bool = False
    parallel_residual: bool = False
    tie_embeddings: bool = True
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    dropout: float = 0.0
    temperature: TemperatureConfig = TemperatureConfig()
    hf_config: str | None = None

    def __post_init__(self) -> None:
        positive = "n_layer n_head d_model n_kv_head head_dim d_ff vocab_size max_positions rope_theta norm_eps"
        self._check("model", {"> 0": positive, "> 0 and <= 1": "rotary_fraction", ">= 0 and < 1": "dropout"})
        if self.head_dim is None:
            check_divides("model.n_head", self.n_head, "model.d_model", self.d_model)
        d_ff = max(8, self.d_model * 8 // 3 // 8 * 8) if self.gated_mlp else 4 * self.d_model
        self._fill({"n_kv_head": self.n_head, "head_dim": self.d_model // self.n_head, "d_ff": d_ff})
        self._check("model", {})  # what was filled in may be too large
        check_divides("model.n_kv_head", self.n_kv_head, "model.n_head", self.n_head)
        if self.positions == "rotary" and self.d_rotary == 0:
            raise ValueError(
                f"model.rotary_fraction={self.rotary_fraction:g}: rotates less than 2 of a head's {self.head_dim} "
                f"features; valid: {min(1, 2 / self.head_dim):g} to 1, of a model.head_dim of 2 or more"
            )

    @property
    def unused_fields(self) -> set[str]:
        """Fields that do not apply to this model, see ``hf_config``."""
        return {"hf_config"} if self.hf_config is None else _OWN_FIELDS

    @property
    def d_rotary(self) -> int:
        """The number of rotated features of each head, an even number; 0 with learned positions."""
        return int(self.head_dim * self.rotary_fraction) // 2 * 2 if self.positions == "rotary" else 0
