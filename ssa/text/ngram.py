"""What counting alone achieves: unigram and bigram perplexities, to read a model's perplexity against.

Unigram: add-one, p(w) = (c(w) + 1) / (N + V).  Bigram: Witten-Bell (Witten and Bell 1991) interpolated with that
unigram, p(w | h) = (c(h, w) + t(h) p(w)) / (c(h) + t(h)), where t(h) is the number of different tokens seen after h.
Neither has a parameter to tune.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

COUNTED_TOKENS = 20_000_000
_AT_ONCE = 1_000_000  # evaluated tokens

_Tokens = npt.NDArray[Any]
_Floats = npt.NDArray[np.float64]


class NgramModel:
    """Counts of the first ``limit`` of some tokens, (n_tokens,); two or more."""

    def __init__(self, train_tokens: _Tokens, vocab_size: int, limit: int = COUNTED_TOKENS) -> None:
        tokens = np.asarray(train_tokens[:limit])
        counts = np.bincount(tokens, minlength=vocab_size)
        self._vocab_size = vocab_size
        self._unigram = (counts + 1) / (counts.sum() + vocab_size)
        self._pairs, self._pair_counts = np.unique(self._pair_ids(tokens[:-1], tokens[1:]), return_counts=True)
        self._after = np.bincount(tokens[:-1], minlength=vocab_size)  # c(h)
        self._kinds = np.bincount(self._pairs // vocab_size, minlength=vocab_size)  # t(h)

    def unigram(self, tokens: _Tokens) -> _Floats:
        """p(w) of each token."""
        return np.asarray(self._unigram[tokens])

    def bigram(self, previous: _Tokens, tokens: _Tokens) -> _Floats:
        """p(w | h) of each token after the one before it; where that was never seen, p(w)."""
        ids = self._pair_ids(previous, tokens)
        places = np.minimum(np.searchsorted(self._pairs, ids), len(self._pairs) - 1)
        seen = np.where(self._pairs[places] == ids, self._pair_counts[places], 0)
        kinds, total = self._kinds[previous], self._after[previous] + self._kinds[previous]
        unigram = self.unigram(tokens)
        return np.where(total > 0, (seen + kinds * unigram) / np.maximum(total, 1), unigram)

    def _pair_ids(self, previous: _Tokens, tokens: _Tokens) -> npt.NDArray[np.int64]:
        return previous.astype(np.int64) * self._vocab_size + tokens


def reference_perplexities(train_tokens: _Tokens, eval_tokens: _Tokens, vocab_size: int) -> dict[str, float]:
    """Perplexity a token of both models on every evaluated token but the first: on a language model's targets.

    Args:
        train_tokens: (n_train,); at most the first `COUNTED_TOKENS` are counted.
        eval_tokens: (n_eval,), two or more.
        vocab_size: V, above every id.

    Returns:
        ``unigram`` and ``bigram``.
    """
    model = NgramModel(train_tokens, vocab_size)
    sums = {"unigram": 0.0, "bigram": 0.0}  # log-likelihoods, nats
    for start in range(0, len(eval_tokens) - 1, _AT_ONCE):
        window = np.asarray(eval_tokens[start : start + _AT_ONCE + 1])
        sums["unigram"] += float(np.log(model.unigram(window[1:])).sum())
        sums["bigram"] += float(np.log(model.bigram(window[:-1], window[1:])).sum())
    return {name: float(np.exp(-total / (len(eval_tokens) - 1))) for name, total in sums.items()}
