"""Sliding windows over token sequences, as scoring requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ssa.evaluation.scoring.scoring import Request
from ssa.perplexity import windows


def stream_windows(
    ids: Sequence[int], max_length: int, stride: int, restart_at: int | None = None
) -> Iterator[list[Request]]:
    """The requests of each window of ``max_length`` inputs, ``stride`` apart; all tokens but the first are scored once.

    Attention restarts at each token ``restart_at``, as with ``data.document_mask``.
    """
    for window in strided_windows(ids, max_length + 1, stride):
        yield [window] if restart_at is None else list(_restarted(window, restart_at))


def strided_windows(ids: Sequence[int], window: int, stride: int) -> Iterator[Request]:
    """Windows of ``window`` tokens, ``stride`` apart; each scores its new tokens, but never its first."""
    for begin, scored, end in windows(len(ids), window, stride):
        yield Request(list(ids[begin:scored]), list(ids[scored:end]))


def rolling_windows(ids: Sequence[int], prefix: int, max_length: int) -> Iterator[Request]:
    """Score every token once, ``max_length`` at a time: the first window follows the prefix, later ones the token
    before them; the last is extended to the left to ``max_length`` inputs.
    """
    if ids:
        yield Request([prefix], list(ids[:max_length]))
    for start in range(max_length, len(ids), max_length):
        end = min(start + max_length, len(ids))
        yield Request(list(ids[end - max_length - 1 : start]), list(ids[start:end]))


def _restarted(window: Request, end_of_text: int) -> Iterator[Request]:
    """A window whose attention restarts at each end-of-text, which begins a document."""
    ids, first = [*window.context, *window.continuation], len(window.context)
    starts = [0, *(index for index in range(1, len(ids) - 1) if ids[index] == end_of_text)]
    for start, stop in zip(starts, [*starts[1:], len(ids) - 1], strict=True):
        scored = max(start + 1, first)
        if scored <= stop:
            yield Request(ids[start:scored], ids[scored : stop + 1])
