"""Batches of token blocks: batch k is a pure function of the data, the seed and k."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssa.perplexity import windows
from ssa.text.token_cache import TokenSplit

_TRAINING, _EVALUATION = 1, 2  # distinguish the seeds of noise from each other and from those of the order


class TokenNoise:
    """Replaces a share of input tokens by uniformly random ones, so that a model must read through noise.

    End-of-text stays and is never drawn, as attention may restart there.
    """

    def __init__(self, split: TokenSplit, share: float, seed: int, purpose: int) -> None:
        self._split, self._share, self._seed, self._purpose = split, share, seed, purpose

    def __call__(self, inputs: Tensor, keys: Sequence[int]) -> Tensor:
        """(B, T) -> (B, T); a row's noise depends on the seed and on its key, not on its batch."""
        if self._share:
            tokenizer = self._split.tokenizer
            end, entries = tokenizer.end_of_text, tokenizer.vocab_size
            for row, key in zip(inputs.numpy(), keys, strict=True):
                random = np.random.default_rng((self._seed, key, self._purpose))
                chosen = (random.random(len(row)) < self._share) & (row != end)
                others = random.integers(entries - 1, size=len(row))
                row[chosen] = (others + (others >= end))[chosen]
        return inputs


class Batch(NamedTuple):
    """A micro-batch: consecutive samples of training, or windows for evaluation."""

    inputs: Tensor  # (B, T), int64
    targets: Tensor  # (B, T), int64
    first_sample: int = 0  # number of the first row, counted from the start of training; the others follow
    counted: bool = True  # in evaluation: false where another process evaluates it


class TrainingBatches:
    """Random batches of blocks; each epoch visits every block once, in its own order.

    Block i is ``tokens[i T : i T + T + 1]``.  Sample s, counted from the start of training, is block
    ``permutation(seed, s // n_blocks)[s % n_blocks]``.  It depends on the seed alone, as does its noise: runs with
    other batch sizes, models or logging see the same samples in the same order.

    Raises:
        UserError: the split is shorter than a block.
    """

    def __init__(self, split: TokenSplit, block_size: int, batch_size: int, seed: int, noise: float = 0.0) -> None:
        split.require(block_size + 1)
        self._noise = TokenNoise(split, noise, seed, _TRAINING)
        self.tokens = split.tokens
        self.block_size, self.batch_size, self.seed = block_size, batch_size, seed
        self.n_blocks = (split.n_tokens - 1) // block_size
        self._permutation = functools.lru_cache(maxsize=2)(self._make_permutation)

    def micro_batch(self, m: int, size: int) -> Batch:
        """Samples ``m size`` to ``(m + 1) size - 1``; inputs and targets are (size, block_size)."""
        samples = range(m * size, (m + 1) * size)
        starts = [self.block_of(sample) * self.block_size for sample in samples]
        inputs, targets = _blocks(self.tokens, starts, self.block_size)
        return Batch(self._noise(inputs, samples), targets, samples[0])

    def block_of(self, sample: int) -> int:
        """Index of the block of a sample, counted from the start of training."""
        epoch, position = divmod(sample, self.n_blocks)
        return int(self._permutation(epoch)[position])

    def _make_permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng((self.seed, epoch)).permutation(self.n_blocks)


class EvaluationBatches:
    """Consecutive windows of a split without overlap; every token but the first is a target exactly once.

    Iterates over inputs and targets, each (batch_size or fewer, block_size), int64.  Leftover tokens form a last,
    shorter window, (1, rest).  Their noise is the same in all runs.
    """

    def __init__(self, split: TokenSplit, block_size: int, batch_size: int, noise: float = 0.0) -> None:
        self.tokens = split.tokens
        self._noise = TokenNoise(split, noise, 0, _EVALUATION)
        found = list(windows(split.n_tokens, block_size + 1, block_size))
        full = [window for window in found if window.end - window.begin > block_size]
        self._batches = [full[first : first + batch_size] for first in range(0, len(full), batch_size)]
        self._batches += [[window] for window in found[len(full) :]]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        batch = self._batches[number]
        length = batch[0].end - batch[0].begin - 1
        starts = [window.begin for window in batch]
        inputs, targets = _blocks(self.tokens, starts, length)
        return self._noise(inputs, starts), targets


def probe_windows(tokens: npt.NDArray[Any], block_size: int, sequences: int) -> Tensor:
    """The first windows of a token stream, the fixed batch for attention statistics: (n_tokens,) -> (sequences or
    fewer, block_size), int64; (1, n_tokens) if the stream is shorter than a block.
    """
    first = torch.from_numpy(tokens[: sequences * block_size].astype(np.int64))
    rows = max(1, len(first) // block_size)
    return first[: rows * block_size].reshape(rows, -1)


def visible_in_documents(ids: Tensor, end_of_text: int) -> Tensor:
    """Number of visible keys of each query, itself included, if attention restarts at each document.

    A document begins with the end-of-text token before it; tokens before the first of a row belong to a document
    truncated on the left.  (B, T) -> (B, T), int64, counting from 1 at the start of each document.
    """
    slots = torch.arange(ids.size(1), device=ids.device).expand_as(ids)
    starts = torch.where(ids == end_of_text, slots, 0).cummax(dim=1).values
    return slots - starts + 1


def _blocks(tokens: npt.NDArray[Any], starts: list[int], length: int) -> tuple[Tensor, Tensor]:
    """``length`` inputs from each start, and the token after each of them as its target."""
    stacked = np.stack([tokens[start : start + length + 1] for start in starts])
    blocks = torch.from_numpy(stacked.astype(np.int64))
    return blocks[:, :-1].clone(), blocks[:, 1:].clone()  # apart, as noise changes the inputs
