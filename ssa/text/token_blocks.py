"""Tokens as blocks: which tokens are in batch k, as a pure function of the data, the seed and k."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssa.perplexity import windows
from ssa.text.token_cache import TokenSplit


class TrainingBatches:
    """Random batches of a split's blocks; every block once in each epoch, in an order of its own.

    Block i is ``tokens[i T : i T + T + 1]``.  Sample s, counted from the start of training, is block
    ``permutation(seed, s // n_blocks)[s % n_blocks]``: its place depends on the seed alone, so that runs with other
    batch sizes, other models or other logging see the same samples in the same order.

    Args:
        split: the tokens, (n_tokens,).
        block_size: T, in tokens.
        batch_size: samples in a batch.
        seed: of the order.

    Raises:
        UserError: the split is shorter than one block.
    """

    def __init__(self, split: TokenSplit, block_size: int, batch_size: int, seed: int) -> None:
        split.require(block_size + 1)
        self.tokens = split.tokens
        self.block_size, self.batch_size, self.seed = block_size, batch_size, seed
        self.n_blocks = (split.n_tokens - 1) // block_size
        self._permutation = functools.lru_cache(maxsize=2)(self._make_permutation)

    def batch(self, k: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of batch ``k``, each (batch_size, block_size), int64."""
        return self.micro_batch(k, self.batch_size)

    def micro_batch(self, m: int, micro_size: int) -> tuple[Tensor, Tensor]:
        """The same sequence of samples ``micro_size`` at a time: batch k is its micro-batches in order."""
        blocks = [self.block_of(sample) for sample in range(m * micro_size, (m + 1) * micro_size)]
        return _blocks(self.tokens, [block * self.block_size for block in blocks], self.block_size)

    def block_of(self, sample: int) -> int:
        """The block that a sample of the whole training is."""
        epoch, place = divmod(sample, self.n_blocks)
        return int(self._permutation(epoch)[place])

    def _make_permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng((self.seed, epoch)).permutation(self.n_blocks)


class EvaluationBatches:
    """A whole split in consecutive windows that do not overlap: every token but the first is a target once.

    Iterates over inputs and targets, (batch_size or fewer, block_size) each, int64.  Left-over tokens are a last pair
    of one shorter window, (1, rest).

    Args:
        split: the tokens, (n_tokens,).
        block_size: inputs per window.
        batch_size: windows in a batch.
    """

    def __init__(self, split: TokenSplit, block_size: int, batch_size: int) -> None:
        self.tokens = split.tokens
        found = list(windows(split.n_tokens, block_size + 1, block_size))
        full = [window for window in found if window.end - window.begin > block_size]
        self._batches = [full[first : first + batch_size] for first in range(0, len(full), batch_size)]
        self._batches += [[window] for window in found[len(full) :]]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._batches:
            length = batch[0].end - batch[0].begin - 1
            yield _blocks(self.tokens, [window.begin for window in batch], length)


def probe_windows(tokens: npt.NDArray[Any], block_size: int, sequences: int) -> Tensor:
    """The first windows of a stream of tokens, (n_tokens,): the fixed batch that attention is measured on.

    Returns:
        (sequences or fewer, block_size), int64; of a stream shorter than a block, all of it, (1, n_tokens).
    """
    first = torch.from_numpy(tokens[: sequences * block_size].astype(np.int64))
    rows = max(1, len(first) // block_size)
    return first[: rows * block_size].reshape(rows, -1)


def visible_in_documents(ids: Tensor, end_of_text: int) -> Tensor:
    """How many tokens each token sees when attention restarts at each document, itself among them.

    A document begins with the end-of-text token before it, as the first one of a split does.

    Args:
        ids: (B, T); what precedes the first end-of-text of a row is a document cut off on the left.
        end_of_text: the id between documents.

    Returns:
        (B, T), from 1 at the start of each document on.
    """
    slots = torch.arange(ids.size(1), device=ids.device).expand_as(ids)
    starts = torch.where(ids == end_of_text, slots, 0).cummax(dim=1).values
    return slots - starts + 1


def _blocks(tokens: npt.NDArray[Any], starts: list[int], length: int) -> tuple[Tensor, Tensor]:
    """``length`` inputs from each start, and the token after each of them as its target."""
    stacked = np.stack([tokens[start : start + length + 1] for start in starts])
    blocks = torch.from_numpy(stacked.astype(np.int64))
    return blocks[:, :-1].contiguous(), blocks[:, 1:].contiguous()
