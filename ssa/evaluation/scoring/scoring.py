"""Log-likelihoods of continuations, in batches of like length, each shared beginning computed once.

Requests that begin alike, as the answers to one question do, are a *group*: their common prefix goes through the model
once, its keys and values are handed to every row, and only what differs follows.  The output matrix is applied where a
continuation is predicted and nowhere else.

Letters: B batch, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ssa.errors import UserError
from ssa.evaluation.scoring.batching import in_batches
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.model.kv_cache import GrowingCache, KVCache
from ssa.model.transformer import Transformer

_SAVED = 8, 1 / 16  # tokens, and share of all, that a shared prefix must save: rows without one need no mask
_GROUP = 32  # rows with one prefix, where the size of a batch is ours to choose
_HELD = 8192  # tokens whose keys and values are held while rows go on from them
_LOGITS = 2**25  # held at once
_PAD = 0  # any id: nothing reads it


class Request(NamedTuple):
    """Token ids: what is given, at least one; and what follows, at least one."""

    context: list[int]
    continuation: list[int]


class Score(NamedTuple):
    """Of a continuation: the log-likelihood of each token, in nats; whether each was the likeliest."""

    logprobs: list[float]
    greedy: bool


class _Row(NamedTuple):
    number: int  # of the request
    tokens: list[int]  # cut on the left to the model's context; the last is only predicted
    scored: int  # how many of the last ones


class _Group(NamedTuple):
    prefix: int  # tokens that its rows have in common
    rows: list[_Row]

    @property
    def length(self) -> int:
        """Input tokens of its longest row."""
        return max(len(row.tokens) for row in self.rows) - 1


class _Held(NamedTuple):
    """A prefix that has been through the model."""

    layers: list[tuple[Tensor, Tensor]]  # keys and values, (T, K, d) each
    hidden: Tensor  # (T, D)


def score_requests(
    evaluated: EvaluatedModel,
    requests: Sequence[Request],
    max_length: int,
    batch_size: int | None,
    keep: Callable[[list[tuple[int, Score]]], None],
) -> None:
    """Scores requests, a batch at a time.

    Args:
        evaluated: the model.
        requests: in any order.
        max_length: the longest input in tokens; longer ones are cut on the left.
        batch_size: rows at once; None: as many as suit the device.
        keep: called with number and score of each request of a batch.

    Raises:
        UserError: a continuation is longer than the context; or out of memory.
    """
    rows = [_row(number, request, max_length) for number, request in enumerate(requests)]
    groups = sorted(_groups(rows, batch_size), key=lambda group: group.length, reverse=True)

    def in_rows(run: Callable[[list[int]], None], lengths: list[int]) -> None:
        with torch.inference_mode(), evaluated.autocast():
            in_batches(run, lengths, evaluated.device, batch_size)

    lone = [row for group in groups if not group.prefix for row in group.rows]
    in_rows(
        lambda items: keep(_score_lone(evaluated.model, [lone[item] for item in items])),
        [len(row.tokens) - 1 for row in lone],
    )
    for shared in _portions([group for group in groups if group.prefix]):
        _score_shared(evaluated.model, shared, in_rows, keep)


def input_tokens(request: Request) -> int:
    """What the model reads for it, without a shared prefix."""
    return len(request.context) + len(request.continuation) - 1


def _row(number: int, request: Request, max_length: int) -> _Row:
    scored = len(request.continuation)
    if scored > max_length:
        raise UserError(f"context={max_length}: a continuation has {scored} tokens; it must fit in")
    return _Row(number, [*request.context, *request.continuation][-(max_length + 1) :], scored)


def _groups(rows: Sequence[_Row], batch_size: int | None) -> Iterator[_Group]:
    """Neighbors in alphabetical order, for as long as each that joins saves more tokens."""
    prefix, together = 0, list[_Row]()
    least, share = _SAVED
    for row in sorted(rows, key=lambda row: row.tokens):
        common = min(prefix, _common(together[0].tokens, row.tokens) if together else 0, _sharable(row))
        saved, before = len(together) * common, (len(together) - 1) * prefix
        needed = max(least, before, share * sum(len(one.tokens) for one in [*together, row]))
        if len(together) < (batch_size or _GROUP) and saved >= needed:
            prefix = common
            together.append(row)
            continue
        if together:
            yield _Group(prefix if len(together) > 1 else 0, together)
        prefix, together = _sharable(row), [row]
    if together:
        yield _Group(prefix if len(together) > 1 else 0, together)


def _sharable(row: _Row) -> int:
    """Tokens that may be a prefix: all but the last input and what it predicts."""
    return len(row.tokens) - 2


def _portions(groups: Sequence[_Group]) -> Iterator[list[_Group]]:
    """As many at once as may be held."""
    portion: list[_Group] = []
    for group in groups:
        if sum(other.prefix for other in portion) + group.prefix > _HELD and portion:
            yield portion
            portion = []
        portion.append(group)
    if portion:
        yield portion


def _common(one: list[int], other: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _score_lone(model: Transformer, rows: Sequence[_Row]) -> list[tuple[int, Score]]:
    """Padded on the right, where causal attention looks at no pad."""
    hidden = model.hidden(_padded([row.tokens[:-1] for row in rows]).to(model.device))  # (B, T, D)
    return _scores(model, rows, [states[: len(row.tokens) - 1] for states, row in zip(hidden, rows, strict=True)])


def _score_shared(
    model: Transformer,
    groups: Sequence[_Group],
    in_rows: Callable[[Callable[[list[int]], None], list[int]], None],
    keep: Callable[[list[tuple[int, Score]]], None],
) -> None:
    """The prefixes, then what follows them in each row, each in batches of like length."""
    groups = sorted(groups, key=lambda group: group.prefix, reverse=True)
    held: list[_Held] = []
    in_rows(
        lambda items: held.extend(_hold(model, [_prefix(groups[item]) for item in items])),
        [group.prefix for group in groups],
    )
    rows = [(row, prefix) for group, prefix in zip(groups, held, strict=True) for row in group.rows]
    rows.sort(key=lambda pair: len(pair[0].tokens) - len(pair[1].hidden), reverse=True)
    new = [len(row.tokens) - len(prefix.hidden) for row, prefix in rows]
    in_rows(
        lambda items: keep(_score_after(model, [rows[item] for item in items])),
        [max(length, len(row.tokens) // 4) for length, (row, _) in zip(new, rows, strict=True)],  # a prefix costs less
    )


def _prefix(group: _Group) -> list[int]:
    return group.rows[0].tokens[: group.prefix]


def _hold(model: Transformer, prefixes: Sequence[list[int]]) -> list[_Held]:
    """Padded on the right, like rows alone."""
    layers = [GrowingCache(max(map(len, prefixes))) for _ in range(model.config.n_layer)]
    hidden = model.hidden(_padded(prefixes).to(model.device), cache=KVCache(list(layers)))  # (B, T, D)
    stored = [tuple(tensor.transpose(1, 2) for tensor in layer.held) for layer in layers]  # (B, T, K, d) each
    return [
        _Held(
            [(key[row, : len(prefix)], value[row, : len(prefix)]) for key, value in stored], hidden[row, : len(prefix)]
        )
        for row, prefix in enumerate(prefixes)
    ]


def _score_after(model: Transformer, rows: Sequence[tuple[_Row, _Held]]) -> list[tuple[int, Score]]:
    """Prefixes padded on the left, what follows on the right."""
    starts = [len(held.hidden) for _, held in rows]
    rest = [row.tokens[start:-1] for (row, _), start in zip(rows, starts, strict=True)]
    capacity = max(starts) + max(map(len, rest))
    layers = [GrowingCache(capacity) for _ in range(model.config.n_layer)]
    for number, layer in enumerate(layers):
        layer.append(*(_padded_left([held.layers[number][which] for _, held in rows]) for which in (0, 1)))
    lengths = torch.tensor([len(tokens) for tokens in rest], device=model.device)[:, None]  # (B, 1)
    slots = torch.arange(1, max(map(len, rest)) + 1, device=model.device).minimum(lengths)  # pads stay in position
    visible = torch.tensor(starts, device=model.device)[:, None] + slots  # (B, T)
    cache = KVCache(list(layers), max(starts))
    hidden = model.hidden(_padded(rest).to(model.device), visible=visible, cache=cache)  # (B, T, D)
    states = [
        torch.cat([held.hidden, after[: len(tokens)]])
        for (_, held), after, tokens in zip(rows, hidden, rest, strict=True)
    ]
    return _scores(model, [row for row, _ in rows], states)


def _scores(model: Transformer, rows: Sequence[_Row], states: Sequence[Tensor]) -> list[tuple[int, Score]]:
    """The scored tokens of each row, from the hidden states of its inputs, (T, D)."""
    hidden = torch.cat([of_row[-row.scored :] for row, of_row in zip(rows, states, strict=True)])  # (N, D)
    targets = torch.tensor([token for row in rows for token in row.tokens[-row.scored :]], device=hidden.device)
    found: list[Tensor] = []
    likeliest: list[Tensor] = []
    at_once = max(1, _LOGITS // model.head.out_features)
    for some, wanted in zip(hidden.split(at_once), targets.split(at_once), strict=True):  # type: ignore[no-untyped-call]
        logits = model.head(some).float()  # (N, V)
        found.append(-F.cross_entropy(logits, wanted, reduction="none"))  # training's; logsumexp differs by 1e-5
        likeliest.append(logits.argmax(1) == wanted)
    lengths = [row.scored for row in rows]
    logprobs = torch.cat(found).cpu().split(lengths)  # type: ignore[no-untyped-call]
    greedy = torch.cat(likeliest).cpu().split(lengths)  # type: ignore[no-untyped-call]
    return [
        (row.number, Score(values.tolist(), bool(hits.all())))
        for row, values, hits in zip(rows, logprobs, greedy, strict=True)
    ]


def _padded(rows: Sequence[list[int]]) -> Tensor:
    """On the right: (B, T)."""
    longest = max(map(len, rows))
    return torch.tensor([tokens + [_PAD] * (longest - len(tokens)) for tokens in rows])


def _padded_left(rows: list[Tensor]) -> Tensor:
    """(T, K, d) each -> (B, K, T, d)."""
    return pad_sequence(rows, batch_first=True, padding_side="left").transpose(1, 2)
