"""Perplexities from a summed loss, each with the count that it divides by."""

from __future__ import annotations

import math


def perplexities(nll: float, *, tokens: int, words: int, n_bytes: int) -> dict[str, float]:
    """The usual measures of one evaluation.

    Args:
        nll: negative log-likelihood in nats, summed over all predicted tokens, end-of-text tokens among them.
        tokens: predicted tokens.
        words: words of the text, split at white space (the convention of WikiText's word perplexity).
        n_bytes: UTF-8 bytes of the text.

    Returns:
        ``loss`` (nats a token), ``perplexity`` (a token), ``word_perplexity``, ``bits_per_byte``.
    """
    return {
        "loss": nll / tokens,
        "perplexity": _exp(nll / tokens),
        "word_perplexity": _exp(nll / words) if words else math.inf,
        "bits_per_byte": nll / math.log(2) / n_bytes if n_bytes else math.inf,
    }


def _exp(x: float) -> float:
    try:
        return math.exp(x)
    except OverflowError:  # an untrained model's word perplexity can be
        return math.inf
