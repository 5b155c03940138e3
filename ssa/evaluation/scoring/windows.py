"""Token sequences as requests: which tokens are scored after which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ssa.evaluation.scoring.scoring import Request


def stream_windows(
    ids: Sequence[int], context: int, stride: int, restart_at: int | None = None
) -> Iterator[list[Request]]:
    """A stream in windows of ``context`` inputs, the requests of each; every token but the first is scored once.

    Args:
        ids: the stream.
        context: inputs of a window; the token after them is scored too.
        stride: tokens from a window to the next.
        restart_at: the token at which attention begins anew, as with ``data.document_mask``; None: no such.
    """
    for window in strided_windows(ids, context + 1, stride):
        yield [window] if restart_at is None else list(_restarted(window, restart_at))


def strided_windows(ids: Sequence[int], window: int, stride: int) -> Iterator[Request]:
    """Windows of ``window`` tokens, ``stride`` apart; each scores what none before did, and not its own first."""
    done = 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        start = max(begin + 1, done)
        if start < end:
            yield Request(list(ids[begin:start]), list(ids[start:end]))
        if end == len(ids):
            return
        done = end


def rolling_windows(ids: Sequence[int], prefix: int, context: int) -> Iterator[Request]:
    """Every token once, ``context`` at a time: the first window after the prefix, the others after the token before
    them; the last, where it is shorter, after as many as fill it.
    """
    if ids:
        yield Request([prefix], list(ids[:context]))
    for start in range(context, len(ids), context):
        end = min(start + context, len(ids))
        yield Request(list(ids[end - context - 1 : start]), list(ids[start:end]))


def _restarted(window: Request, end_of_text: int) -> Iterator[Request]:
    """A window whose attention restarts at each document: at each end-of-text, which begins one."""
    ids, first = [*window.context, *window.continuation], len(window.context)
    starts = [0, *(place for place in range(1, len(ids) - 1) if ids[place] == end_of_text)]
    for start, stop in zip(starts, [*starts[1:], len(ids) - 1], strict=True):
        scored = max(start + 1, first)
        if scored <= stop:
            yield Request(ids[start:scored], ids[scored : stop + 1])
