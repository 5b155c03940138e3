"""Inverse temperatures: the paper's idea.  Selective Self-Attention, arXiv 2411.12892, section 3.

In this project *temperature* always means the *inverse* temperature tau that multiplies a query, key or value:

    q_i <- tau_q(x_i, i) q_i        k_j <- tau_k(x_j, j) k_j        v_j <- tau_v(x_j, j) v_j
    tau(x, n) = tau_tok(x) + tau_pos(n)
    tau_tok(x) = tanh(w . gelu(W x))              W: the projection the layer already has ("weight sharing")
    tau_pos(n) = 1 + sigmoid(alpha) log(n)        n = 1, 2, ... = the number of keys the query can see

A larger tau_q makes the attention map of that query spikier; a tau_v near 0 mutes a token.  Only the vectors w and
the scalars alpha are new.

Every rule that SSA is compared with is a temperature too, with at most three terms:

    tau = multiplier (1 + token + position)

``token`` and ``position`` are deviations from 1, the identity.  A rule is one class in `ssa.model.temperature_rules`
and one file in ``conf/model/temperature``, which also says what is scaled: query, key, value or attention output.

Letters: B batch, H heads, T tokens, d head_dim, D d_model; G is H, or 1 with one temperature for the whole layer.
All of it is computed in the parameters' dtype, float32, also under bf16 autocast: near the identity a bf16 temperature
has only a few values over 2,048 positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ssa.model.config import TemperatureConfig, Terms
from ssa.model.sharding import local_part
from ssa.model.temperature_rules import TERMS, LengthTerm, Shape, Term, Tokens


def upgraded_name(name: str) -> str:
    """The name of a parameter or tensor that version 0.1 called ``name``."""
    return name.replace(".parts.base.", ".terms.multiplier.").replace(".parts.", ".terms.")


class Temperature(nn.Module):
    """The inverse temperature of one of query, key, value, output: ``multiplier (1 + token + position)``.

    Raises:
        ValueError: no such term, or it belongs to another slot.
    """

    def __init__(self, terms: Terms, shape: Shape, config: TemperatureConfig) -> None:
        super().__init__()
        self.terms = nn.ModuleDict()
        for slot, name in terms.chosen.items():
            if name not in TERMS or TERMS[name].slot != slot:
                valid = ", ".join(["none", *(name for name, term in TERMS.items() if term.slot == slot)])
                raise ValueError(f"{slot}={name}: not a {slot} term of a temperature; valid: {valid}")
            self.terms[slot] = TERMS[name](shape, config.starting())
        self.register_load_state_dict_pre_hook(_upgrade)  # type: ignore[no-untyped-call]

    def forward(self, features: Tensor, tokens: Tokens) -> Tensor:
        """The temperatures of a batch, from features before scaling and rotation, (B, T, H, d).

        Returns:
            float32 (float64 for float64 features), broadcastable to (B, T, H, 1), or to (B, T, H, d) with
            ``rms_norm``.  With a multiplier, the other terms read the features times the multiplier.
        """
        with torch.autocast(features.device.type, enabled=False):
            multiplier, tau = None, torch.ones((), device=features.device)  # a scalar: the terms' dtype wins
            for slot, term in self.terms.items():
                if slot == "multiplier":
                    multiplier = term(features, tokens)
                    features = features * multiplier
                else:
                    tau = tau + term(features, tokens)
            return tau if multiplier is None else multiplier * tau

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Sets all parameters to their start values; random ones are drawn from ``generator``."""
        for term in self._terms():
            term.reset_parameters(generator)

    @property
    def starts_at_identity(self) -> bool:
        """Whether it is 1 at the start values, within `TOLERANCE`."""
        return all(term.starts_at_identity for term in self._terms())

    @property
    def per_feature(self) -> bool:
        """Whether the features of a head have temperatures of their own, which do not commute with rotation."""
        return any(term.per_feature for term in self._terms())

    def largest_position_term(self, shift: float, n: int) -> float | None:
        """The largest position term, in absolute value, at n keys while its scalar moves by at most ``shift``.

        None without a position term.  Adam moves a parameter by about the learning rate in a step.
        """
        for term in self._terms():
            if isinstance(term, LengthTerm):
                now = local_part(term.get_parameter(term.scalar)).flatten()[0].item()
                return max(abs(term.value_at(now + step, n)) for step in (-shift, shift))
        return None

    def _terms(self) -> list[Term]:
        return [term for term in self.terms.values() if isinstance(term, Term)]


def _upgrade(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Renames the tensors in a checkpoint of version 0.1."""
    for name in [name for name in state if name.startswith(f"{prefix}parts.")]:
        state[upgraded_name(name)] = state.pop(name)


class ProjectionTemperatures(nn.Module):
    """The temperatures of one layer by the projection they scale; empty in vanilla attention.

    It is called rather than indexed in a forward pass, so that a wrapper with a forward of its own may replace it:
    PEFT's ``modules_to_save``, which refuses an `nn.ModuleDict`.
    """

    def __init__(self, temperatures: Mapping[str, Temperature]) -> None:
        super().__init__()
        for name, temperature in temperatures.items():
            self.add_module(name, temperature)

    def forward(self, name: str, features: Tensor, tokens: Tokens) -> Tensor | None:
        """The temperatures of a projection, see `Temperature`; None if it has none."""
        return self[name](features, tokens) if name in self else None

    def __contains__(self, name: str) -> bool:
        return name in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __getitem__(self, name: str) -> Temperature:
        return cast(Temperature, self._modules[name])

    def __len__(self) -> int:
        return len(self._modules)

    def items(self) -> list[tuple[str, Temperature]]:
        """Projections with their temperatures."""
        return [(name, self[name]) for name in self._modules]


def build_temperatures(config: TemperatureConfig, shape: Shape, n_kv_head: int | None = None) -> ProjectionTemperatures:
    """The temperatures of one layer by the projection they scale; without any, vanilla attention.

    ``n_kv_head``: number of key and value heads, if fewer.
    """
    shapes = dict.fromkeys(("key", "value"), shape._replace(n_head=n_kv_head or shape.n_head))
    scaled = config.scaled.items()
    return ProjectionTemperatures({name: Temperature(terms, shapes.get(name, shape), config) for name, terms in scaled})


def scale(features: Tensor, temperature: Tensor) -> Tensor:
    """(B, T, H, d) times float32 (B, T, H, 1), multiplied in float32, back in the dtype of ``features``."""
    return (features * temperature).to(features.dtype)
