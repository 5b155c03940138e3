from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from ssa.text import ngram
from ssa.text.ngram import NgramModel, reference_perplexities

V = 23


def zipf(n: int, seed: int, highest: int = V) -> np.ndarray:
    return np.minimum(np.random.default_rng(seed).zipf(1.4, n) - 1, highest - 1).astype(np.uint16)


def naive(train: list[int], evaluated: list[int]) -> dict[str, float]:
    """A literal implementation of the definitions."""
    counts, pairs, after = Counter(train), Counter(itertools.pairwise(train)), Counter(train[:-1])
    followers: dict[int, set[int]] = defaultdict(set)
    for h, w in pairs:
        followers[h].add(w)
    nll = {"unigram": 0.0, "bigram": 0.0}
    for h, w in itertools.pairwise(evaluated):
        unigram = (counts[w] + 1) / (len(train) + V)
        t = len(followers[h])
        bigram = (pairs[h, w] + t * unigram) / (after[h] + t) if after[h] else unigram
        nll["unigram"] -= math.log(unigram)
        nll["bigram"] -= math.log(bigram)
    return {name: math.exp(total / (len(evaluated) - 1)) for name, total in nll.items()}


def test_equals_the_naive_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram, "_BLOCK", 100)
    train, evaluated = zipf(2000, 0, highest=V - 3), zipf(555, 1)  # three tokens are never seen in training
    expected = naive(train.tolist(), evaluated.tolist())
    assert reference_perplexities(train, evaluated, V) == pytest.approx(expected, rel=1e-12)


def test_probabilities_sum_to_one() -> None:
    model = NgramModel(zipf(500, 2, highest=V - 3), V)
    every = np.arange(V)
    assert model.unigram(every).sum() == pytest.approx(1)
    for h in range(V):
        p = model.bigram(np.full(V, h), every)
        assert p.min() > 0
        assert p.sum() == pytest.approx(1)


def test_bigram_wins_where_order_matters() -> None:
    found = reference_perplexities(np.tile([1, 2, 3], 500), np.tile([1, 2, 3], 50), vocab_size=5)
    assert found["bigram"] < 1.02
    assert found["unigram"] == pytest.approx(3, rel=0.02)


def test_only_the_first_tokens_are_counted() -> None:
    model = NgramModel(np.array([0, 0, 0, 1, 1, 1]), 2, limit=3)
    assert model.unigram(np.array([1]))[0] == pytest.approx(1 / 5)


def test_large_vocabulary_does_not_overflow() -> None:
    vocab_size = 200_000
    train = np.array([vocab_size - 1, vocab_size - 2] * 50, dtype=np.uint32)
    assert reference_perplexities(train, train, vocab_size)["bigram"] < 1.1
