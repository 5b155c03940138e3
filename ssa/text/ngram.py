"""N-gram baselines: unigram and bigram perplexities, as a reference for a model's perplexity.

Unigram: add-one, p(w) = (c(w) + 1) / (N + V).  Bigram: Witten-Bell (Witten and Bell 1991) interpolated with that
unigram, p(w | h) = (c(h, w) + t(h) p(w)) / (c(h) + t(h)), where t(h) is the number of distinct tokens that follow h.
Neither has hyperparameters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

COUNTED_TOKENS = 20_000_000
_BLOCK = 1_000_000  # tokens evaluated at once

_Tokens = npt.NDArray[Any]
_Floats = npt.NDArray[np.float64]


class NgramModel:
    """Counts of the first ``limit`` training tokens, (n_tokens,), at least two."""

    def __init__(self, train_tokens: _Tokens, vocab_size: int, limit: int = COUNTED_TOKENS) -> None:
        tokens = np.asarray(train_tokens[:limit])
        counts = np.bincount(tokens, minlength=vocab_size)
        self._vocab_size = vocab_size
        self._unigram = (counts + 1) / (counts.sum() + vocab_size)
        self._pairs, self._pair_counts = np.unique(self._pair_ids(tokens[:-1], tokens[1:]), return_counts=True)
        self._after = np.bincount(tokens[:-1], minlength=vocab_size)  # c(h)
        self._distinct = np.bincount(self._pairs // vocab_size, minlength=vocab_size)  # t(h)

    def unigram(self, tokens: _Tokens) -> _Floats:
        """p(w) of each token."""
        return np.asarray(self._unigram[tokens])

    def bigram(self, previous: _Tokens, tokens: _Tokens) -> _Floats:
        """p(w | h) of each token given its predecessor; p(w) if the predecessor was never seen."""
        ids = self._pair_ids(previous, tokens)
        positions = np.minimum(np.searchsorted(self._pairs, ids), len(self._pairs) - 1)
        seen = np.where(self._pairs[positions] == ids, self._pair_counts[positions], 0)
        distinct, total = self._distinct[previous], self._after[previous] + self._distinct[previous]
        unigram = self.unigram(tokens)
        return np.where(total > 0, (seen + distinct * unigram) / np.maximum(total, 1), unigram)

    def _pair_ids(self, previous: _Tokens, tokens: _Tokens) -> npt.NDArray[np.int64]:
        return previous.astype(np.int64) * self._vocab_size + tokens


def reference_perplexities(train_tokens: _Tokens, eval_tokens: _Tokens, vocab_size: int) -> dict[str, float]:
    """Perplexity per token, by ``unigram`` and ``bigram``, on all evaluated tokens but the first, as for a model.

    Training tokens, (n_train,), count up to `COUNTED_TOKENS`; evaluated tokens, (n_eval,), are at least two.
    """
    model = NgramModel(train_tokens, vocab_size)
    sums = {"unigram": 0.0, "bigram": 0.0}  # log-likelihoods, nats
    for start in range(0, len(eval_tokens) - 1, _BLOCK):
        window = np.asarray(eval_tokens[start : start + _BLOCK + 1])
        sums["unigram"] += float(np.log(model.unigram(window[1:])).sum())
        sums["bigram"] += float(np.log(model.bigram(window[:-1], window[1:])).sum())
    return {name: float(np.exp(-total / (len(eval_tokens) - 1))) for name, total in sums.items()}
