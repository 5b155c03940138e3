"""Rotary position embedding (arXiv 2104.09864), in the form of GPT-NeoX and Llama: halves of a head's features rotate.

Scalar temperatures commute with the rotation: scaling before or after it gives the same result.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssa.model.config import ModelConfig, RopeScaling

Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (1 or B, 1, T, d_rotary)


def rotation(config: ModelConfig, positions: Tensor) -> Rotation:
    """The rotation of tokens at ``positions``, (T,) or (B, T), in float32."""
    frequencies = inverse_frequencies(config).to(positions.device)
    angles = positions.reshape(-1, 1, positions.size(-1), 1).float() * frequencies  # (1 or B, 1, T, d_rotary / 2)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(features: Tensor, by: Rotation) -> Tensor:
    """(B, H, T, d) -> (B, H, T, d), the first ``d_rotary`` features of each head rotated, in float32."""
    cos, sin = by
    turned, rest = features[..., : cos.size(-1)], features[..., cos.size(-1) :]
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((turned.to(features.dtype), rest), dim=-1)


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position, (d_rotary / 2,), from fast to slow."""
    d = config.d_rotary
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, d, 2, dtype=torch.float32, device="cpu") / d)
    return _scaled(frequencies, config.rope_scaling) if config.rope_scaling else frequencies


def _scaled(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3's scaling: slow frequencies divided by ``factor``, fast ones kept, a linear blend in between."""
    turns = scaling.original_max_positions * frequencies / (2 * math.pi)  # in the context of pre-training
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)
