"""Floating-point operations of training, a multiplication and an addition counted as two.

Matrix products alone: 2 FLOPs per weight and token (Kaplan et al. 2020, arXiv 2001.08361), and in each layer
``2 H d`` for every visible key, once for the logits and once for the mixture of values.  Norms, activations and
temperatures are left out: below 1% from ``d_model`` 512 on.
"""

from __future__ import annotations

from typing import NamedTuple

from ssa.config import Config
from ssa.model.config import ModelConfig
from ssa.planning.parameters import Parameters


class Flops(NamedTuple):
    """FLOPs of one token, on average over a block, or of several."""

    forward: float
    attention: float  # of these, the part that grows with the block
    backward: float  # recomputed activations included

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


def training_flops(config: Config, parameters: Parameters) -> Flops:
    """FLOPs of all tokens of a run, without its evaluations."""
    recomputed = config.trainer.checkpoint_activations
    each = flops_per_token(config.model, parameters, config.data.block_size, recomputed)
    return Flops(*(config.tokens * part for part in each))


def flops_per_token(model: ModelConfig, parameters: Parameters, length: int, checkpointed: bool = False) -> Flops:
    """FLOPs of a token in blocks of ``length`` tokens.

    The backward pass takes twice the forward pass: gradients of the features, and those of the weights; once if the
    temperatures alone are trained.  ``checkpointed``: the layers run forward once more.
    """
    keys = (length + 1) / 2  # visible on average, of a causal mask
    attention = model.n_layer * 4 * model.n_head * model.head_dim * keys
    layers = 2 * model.n_layer * parameters.block_matrices + attention
    forward = layers + 2 * parameters.head
    both = parameters.trained > parameters.temperature
    return Flops(forward, attention, (2 if both else 1) * forward + (layers if checkpointed else 0))
