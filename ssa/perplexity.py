"""Perplexity: the windows of a text, and the usual measures from a summed loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

OF_TEXT = ("word_perplexity", "byte_perplexity", "bits_per_byte")  # undefined if the tokenizer loses text


class Window(NamedTuple):
    """Tokens ``begin`` to ``end`` (excluded) of a text; those from ``scored`` on are predicted."""

    begin: int
    scored: int
    end: int


def windows(n_tokens: int, length: int, stride: int) -> Iterator[Window]:
    """Windows over a text; each predicts the tokens that no window before it did, but never its own first.

    Args:
        n_tokens: tokens of the text.
        length: tokens per window, at most; one more than the model's inputs.
        stride: tokens from the start of one window to the next; below ``length``, only the first token of the text
            is not predicted.
    """
    done = 0
    for begin in range(0, n_tokens, stride):
        end = min(begin + length, n_tokens)
        if (scored := max(begin + 1, done)) < end:
            yield Window(begin, scored, end)
        if end == n_tokens:
            return
        done = end


def perplexities(nll: float, *, tokens: int, words: int, n_bytes: int, lossless: bool = True) -> dict[str, float]:
    """Loss, perplexity and related measures of a text.

    Args:
        nll: negative log-likelihood in nats, summed over all predicted tokens, including end-of-text.
        tokens: predicted tokens.
        words: words of the text, split at white space, as for WikiText's word perplexity.
        n_bytes: UTF-8 bytes of the text.
        lossless: whether the tokens determine the text; if not, measures per word and byte are left out.

    Returns:
        ``loss`` (nats per token), ``perplexity`` (per token), ``word_perplexity``, ``bits_per_byte``.
    """
    values = {"loss": nll / tokens, "perplexity": exp_or_inf(nll / tokens)}
    if lossless:
        values["word_perplexity"] = exp_or_inf(nll / words) if words else math.inf
        values["bits_per_byte"] = nll / math.log(2) / n_bytes if n_bytes else math.inf
    return values


def exp_or_inf(x: float) -> float:
    """exp(x), or infinity where it overflows."""
    try:
        return math.exp(x)
    except OverflowError:  # such as the word perplexity of an untrained model
        return math.inf
