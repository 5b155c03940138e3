"""Next-token prediction on a random graph: how well one attention map learns a known transition matrix.

    P*_ij = 1 / d_i  for the d_i out-neighbors j of node i, else 0
    P_ij  = softmax_j(tau_i e_i^T W e_j)          e: learned embeddings, the layer's map over the vocabulary

The paper's figure 3 and table 1 (arXiv 2411.12892) use such graphs; its setup is not known to us, and this one is ours.
Letters: V vocabulary, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ssa.model.config import TemperatureConfig, Terms
from ssa.theory.attention_map import QUERY, VANILLA, AttentionMap
from ssa.theory.ensemble import CHUNK, generator, train

METHODS = {
    "vanilla": VANILLA,
    "ssa": QUERY,
    "constant": TemperatureConfig(name="constant", query=Terms(multiplier="constant")),
}
_GRAPH, _EMBEDDINGS, _DATA = range(3)  # random streams


@dataclass(frozen=True, eq=False)
class TokenGraph:
    """A Markov chain over V tokens."""

    transitions: Tensor  # P*, (V, V), float64; row i is uniform over the out-neighbors of i

    @classmethod
    def draw(cls, vocabulary: int, degrees: Sequence[int], seed: int) -> TokenGraph:
        """A random directed graph without self-loops.

        One neighbor of each node follows a random cycle through all nodes, so that every node is reachable; the others
        are uniform among the rest.  Out-degrees are assigned to nodes at random, as equally often as V allows.

        Raises:
            ValueError: no degrees, or one out of range.
        """
        if not degrees or not all(1 <= degree < vocabulary for degree in degrees):
            raise ValueError(f"degrees={list(degrees)}: valid: at least one, each from 1 to {vocabulary - 1}")
        draws = generator(_GRAPH, seed)
        shares = torch.tensor(degrees).repeat(-(-vocabulary // len(degrees)))[:vocabulary]
        degree = shares[torch.randperm(vocabulary, generator=draws)]
        order = torch.rand(vocabulary, vocabulary, generator=draws, dtype=torch.float64)
        cycle = torch.randperm(vocabulary, generator=draws)
        order[cycle, cycle.roll(-1)] = -1  # first
        order.fill_diagonal_(2)  # last
        chosen = order.argsort(dim=1).argsort(dim=1) < degree[:, None]
        return cls(chosen.double() / degree[:, None])

    @cached_property
    def degrees(self) -> Tensor:
        """Out-degrees, (V,), int64."""
        return (self.transitions > 0).sum(1)

    @cached_property
    def stationary(self) -> Tensor:
        """Stationary distribution pi, (V,): pi P* = pi."""
        size = self.transitions.size(0)
        system = self.transitions.mT - torch.eye(size, dtype=torch.float64)
        system[-1] = 1  # one equation is redundant: replaced by sum(pi) = 1
        pi: Tensor = torch.linalg.solve(system, torch.eye(size, dtype=torch.float64)[-1])
        return pi

    @property
    def floor(self) -> float:
        """Entropy rate, the minimum cross-entropy: ``sum_i pi_i log d_i``, in nats per token."""
        return float(self.stationary @ self.degrees.double().log())

    def excess(self, log_p: Tensor) -> float:
        """Cross-entropy of log P, (V, V), above the floor: ``sum_i pi_i KL(P*_i | P_i)``, in nats per token."""
        true = self.transitions
        return float(self.stationary @ (torch.xlogy(true, true) - true * log_p).sum(1))

    def l1(self, log_p: Tensor) -> Tensor:
        """``sum_j |P_ij - P*_ij|`` at each node, log P (V, V) -> (V,), from 0 to 2."""
        return (log_p.exp() - self.transitions).abs().sum(1)

    def counts(self, steps: int, sequences: int, length: int, draws: torch.Generator) -> Tensor:
        """Transition counts in minibatches of sequences that start in pi, one minibatch per step.

        A sequence has ``length`` transitions, one less than its tokens.  Returns (steps, V, V), float32, exact.
        """
        size, runs = self.transitions.size(0), steps * sequences
        ways = self._moves.size(1)
        choices = torch.randint(ways, (length, runs), generator=draws)
        states = [torch.multinomial(self.stationary, runs, replacement=True, generator=draws)]
        for choice in choices:
            states.append(self._moves.take(states[-1] * ways + choice))
        path = torch.stack(states)  # (length + 1, runs)
        step = torch.arange(steps).repeat_interleave(sequences)
        cells = (step * size + path[:-1]) * size + path[1:]
        return torch.bincount(cells.flatten(), minlength=steps * size * size).reshape(steps, size, size).float()

    @cached_property
    def _moves(self) -> Tensor:
        """Neighbors of each node, all equally often, in rows of equal length: (V, lcm of the degrees)."""
        ways = math.lcm(*self.degrees.tolist())
        neighbors = [row.nonzero().flatten() for row in self.transitions]
        return torch.stack([nodes.repeat(ways // len(nodes)) for nodes in neighbors])


class NextToken(nn.Module):
    """Predicts a token from the previous one: an `AttentionMap` from its embedding over the vocabulary's embeddings.

    Embeddings start as normal(0, 1), so that logits are of order 1; ``normalized`` divides each by its root mean
    square, as a transformer's layers do.  Equal seeds give equal embeddings, W_q and W_k, with or without temperatures.
    """

    def __init__(
        self, vocabulary: int, width: int, temperature: TemperatureConfig, *, normalized: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        drawn = torch.randn(vocabulary, width, generator=generator(_EMBEDDINGS, seed), dtype=torch.float64)
        self.embeddings = nn.Parameter(drawn)  # (V, D)
        self.attention = AttentionMap(width, width, temperature, seed=seed)
        self.normalized = normalized

    def forward(self, counts: Tensor) -> Tensor:
        """Mean cross-entropy over counted transitions, (V, V) -> (), in nats."""
        return -(counts * self.log_probabilities()).sum() / counts.sum()

    def log_probabilities(self) -> Tensor:
        """Log P, (V, V)."""
        return self.logits().log_softmax(-1)

    def logits(self) -> Tensor:
        """(V, V)."""
        x = self._vectors()
        return self.attention.logits(x, x)[0, 0]

    def temperatures(self) -> Tensor:
        """(V,)."""
        x = self._vectors()
        return self.attention.temperatures(x, x.size(1))[0, 0]

    def _vectors(self) -> Tensor:  # (1, V, D)
        x = self.embeddings
        return (x * x.square().mean(-1, keepdim=True).rsqrt() if self.normalized else x)[None]


def learn(
    *,
    method: str,
    vocabulary: int,
    degrees: list[int],
    width: int,
    normalized: bool,
    sequences: int,
    length: int,
    seeds: int,
    first_seed: int = 0,
    **training: Any,
) -> dict[str, Any]:
    """Train a method on the graphs of seeds ``first_seed``, ... and measure it exactly, against P* and under pi.

    The method is one of `METHODS`; graph, data and initial weights of a seed are the same for all.  The other arguments
    are those of `TokenGraph.draw`, `NextToken`, `TokenGraph.counts` and, ``training``, `train`.

    Returns:
        ``parameters``, the model's number of them; ``matrix``, P of the first seed; ``runs``, for each seed: ``seed``,
        ``floor`` and ``excess`` (nats), ``l1`` weighted by pi and ``l1_nodes`` averaged over nodes, ``norm`` of W, and
        for each node ``degree``, ``temperature`` and ``spread``, the standard deviation over the vocabulary of its
        scaled logits.
    """
    numbers = range(first_seed, first_seed + seeds)
    graphs = [TokenGraph.draw(vocabulary, degrees, seed) for seed in numbers]
    models = [NextToken(vocabulary, width, METHODS[method], normalized=normalized, seed=seed) for seed in numbers]

    def draw(member: int, chunk: int) -> tuple[Tensor]:
        return (graphs[member].counts(CHUNK, sequences, length, generator(_DATA, numbers[member], chunk)),)

    train(models, draw, **training)
    measured = zip(numbers, graphs, models, strict=True)
    runs = [{"seed": seed, **_measured(graph, model)} for seed, graph, model in measured]
    matrix = models[0].log_probabilities().detach().exp().tolist()
    return {"parameters": parameters(vocabulary, width, method), "runs": runs, "matrix": matrix}


def parameters(vocabulary: int, width: int, method: str) -> int:
    """Number of parameters of `NextToken`."""
    return sum(values.numel() for values in NextToken(vocabulary, width, METHODS[method]).parameters())


@torch.no_grad()
def _measured(graph: TokenGraph, model: NextToken) -> dict[str, Any]:
    log_p = model.log_probabilities()
    l1 = graph.l1(log_p)
    return {
        "floor": graph.floor,
        "excess": graph.excess(log_p),
        "l1": float(graph.stationary @ l1),
        "l1_nodes": float(l1.mean()),
        "norm": float(model.attention.norms()[0]),
        "degree": graph.degrees.tolist(),
        "temperature": model.temperatures().tolist(),
        "spread": model.logits().std(dim=1, correction=0).tolist(),
    }
