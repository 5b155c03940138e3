"""Checked values of a Hugging Face config.json, under old and new key names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ssa.config_errors import shown
from ssa.errors import UserError
from ssa.model.config import ModelConfig, RopeScaling

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
}
HF_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu"}
_BANDS = ("factor", "low_freq_factor", "high_freq_factor")


class HFConfig:
    """A config.json or a section of it.  Null counts as absent, as in transformers.

    Methods take alternative names of a key, of which the first present one counts, and raise `UserError` for an invalid
    value.
    """

    def __init__(self, values: Mapping[str, Any], section: str = "") -> None:
        self._values, self._section = values, section

    def count(self, default: int | None, *names: str) -> Any:
        """A positive integer."""
        return self._read(default, names, lambda value: type(value) is int and value > 0, "a whole number > 0")

    def number(self, default: float, *names: str) -> float:
        """A positive number."""
        return float(self._read(default, names, _is_positive, "a number > 0"))

    def flag(self, default: bool, name: str) -> bool:
        """True or false."""
        return bool(self._read(default, (name,), lambda value: type(value) is bool, "true or false"))

    def must_be(self, name: str, value: Any) -> None:
        """Refuse any other value, which this project does not support."""
        expected = str(value).lower() if isinstance(value, bool) else shown(value)
        self._read(value, (name,), lambda found: found == value, expected)

    def activation(self, default: str, name: str) -> str:
        """`ModelConfig.activation` for a Hugging Face activation."""
        known = ", ".join(_ACTIVATIONS)
        return _ACTIVATIONS[self._read(default, (name,), lambda value: value in _ACTIVATIONS, known)]

    @property
    def rope(self) -> HFConfig:
        """The section of rotary position settings, empty if there is none."""
        for name in ("rope_scaling", "rope_parameters"):
            section = self._values.get(name)
            if section and not isinstance(section, Mapping):
                raise UserError(f"config.json: {name}={shown(section)}: valid: a section, or null")
            if section:
                return HFConfig(section, f"{name}.")
        return HFConfig({})

    def rope_scaling(self, max_positions: int) -> RopeScaling | None:
        """Scaling of rope_type ``llama3``; None for ``default``.  Other types are refused."""
        rope = self.rope
        kinds = ("default", "llama3")
        if rope._read("default", ("rope_type", "type"), kinds.__contains__, ", ".join(kinds)) == "default":
            return None
        missing = [name for name in _BANDS if rope._values.get(name) is None]
        if missing:
            raise UserError(f"config.json: {rope._section}{missing[0]}: not set; rope_type=llama3 needs it")
        bands = {name: rope.number(1.0, name) for name in _BANDS}
        name = "original_max_position_embeddings"
        original = rope.count(None, name) or self.count(max_positions, name)
        try:
            return RopeScaling(**bands, original_max_positions=original)
        except ValueError as error:
            raise UserError(f"config.json: {error}") from None

    def _read(self, default: Any, names: tuple[str, ...], valid: Callable[[Any], bool], expected: str) -> Any:
        for name in names:
            value = self._values.get(name)
            if value is not None:
                if isinstance(value, dict | list) or not valid(value):
                    raise UserError(f"config.json: {self._section}{name}={shown(value)}: valid: {expected}")
                return value
        return default


def write_rope(model: ModelConfig, partial: Mapping[str, float]) -> dict[str, Any]:
    """Rotary position settings for transformers 4 and 5; ``partial`` holds further keys of version 5."""
    scaling: dict[str, Any] | None = None
    if model.rope_scaling is not None:
        values = model.rope_scaling.plain()
        original = values.pop("original_max_positions")
        scaling = {"rope_type": "llama3", **values, "original_max_position_embeddings": original}
    parameters = {**(scaling or {"rope_type": "default"}), "rope_theta": model.rope_theta, **partial}
    return {"rope_scaling": scaling, "rope_parameters": parameters}


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value)
