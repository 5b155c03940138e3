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

from ssa.errors import UserError
from ssa.evaluation.batching import in_batches
from ssa.evaluation.subject import Subject
from ssa.kv_cache import GrowingCache, KVCache, visible_after_padding
from ssa.transformer import Transformer

_SAVED = 16  # tokens that a shared prefix must save: a second pass through the model has its price
_GROUP = 32  # rows of one, where the size of a batch is ours to choose
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
    prefix: int  # tokens that its rows have in common, all before the first prediction that is scored
    rows: list[_Row]

    @property
    def length(self) -> int:
        """Input tokens of its longest row."""
        return max(len(row.tokens) for row in self.rows) - 1


def score_requests(
    subject: Subject,
    requests: Sequence[Request],
    context: int,
    batch_size: int | None,
    keep: Callable[[list[tuple[int, Score]]], None],
) -> None:
    """Scores requests, a batch at a time.

    Args:
        subject: the model.
        requests: in any order.
        context: the longest input; of a longer request the beginning is left out.
        batch_size: rows at once; None: as many as suit the device.
        keep: called with number and score of each request of a batch.

    Raises:
        UserError: a continuation is longer than the context; or out of memory.
    """
    rows = [_row(number, request, context) for number, request in enumerate(requests)]
    groups = sorted(_groups(rows, batch_size), key=lambda group: group.length, reverse=True)
    for shared in (False, True):
        chosen = [group for group in groups if bool(group.prefix) == shared]

        def run(items: list[int], chosen: list[_Group] = chosen, shared: bool = shared) -> None:
            score = _score_shared if shared else _score_lone
            with torch.inference_mode(), subject.autocast():
                keep(score(subject.model, [chosen[item] for item in items]))

        in_batches(
            run,
            [group.length for group in chosen],
            subject.device,
            batch_size,
            [len(group.rows) for group in chosen],
        )


def input_tokens(request: Request) -> int:
    """What the model reads for it, without a shared prefix."""
    return len(request.context) + len(request.continuation) - 1


def _row(number: int, request: Request, context: int) -> _Row:
    scored = len(request.continuation)
    if scored > context:
        raise UserError(f"context={context}: a continuation has {scored} tokens; it must fit in")
    return _Row(number, [*request.context, *request.continuation][-(context + 1) :], scored)


def _groups(rows: Sequence[_Row], batch_size: int | None) -> Iterator[_Group]:
    """Neighbours in alphabetical order, for as long as each that joins saves more tokens."""
    prefix, together = 0, list[_Row]()
    for row in sorted(rows, key=lambda row: row.tokens):
        common = min(prefix, _common(together[0].tokens, row.tokens) if together else 0, _before_scored(row))
        saved, before = len(together) * common, (len(together) - 1) * prefix
        if len(together) < (batch_size or _GROUP) and saved >= max(_SAVED, before):
            prefix = common
            together.append(row)
            continue
        if together:
            yield _Group(prefix if len(together) > 1 else 0, together)
        prefix, together = _before_scored(row), [row]
    if together:
        yield _Group(prefix if len(together) > 1 else 0, together)


def _before_scored(row: _Row) -> int:
    """Tokens before the one that predicts the first scored one."""
    return len(row.tokens) - row.scored - 1


def _common(one: list[int], other: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _score_lone(model: Transformer, groups: Sequence[_Group]) -> list[tuple[int, Score]]:
    """Rows one by one, padded on the right, where causal attention looks at no pad."""
    rows = [row for group in groups for row in group.rows]
    ids = _padded([row.tokens[:-1] for row in rows])
    hidden = model.hidden(ids.to(model.device))  # (B, T, D)
    return _scores(model, hidden, rows, [0] * len(rows))


def _score_shared(model: Transformer, groups: Sequence[_Group]) -> list[tuple[int, Score]]:
    """The prefix of each group once, padded on the left; then what follows it in each row, padded on the right."""
    prefixes = [group.rows[0].tokens[: group.prefix] for group in groups]
    longest = max(map(len, prefixes))
    ids = torch.tensor([[_PAD] * (longest - len(prefix)) + prefix for prefix in prefixes], device=model.device)
    padding = torch.tensor([longest - len(prefix) for prefix in prefixes], device=model.device)
    layers = [GrowingCache() for _ in range(model.config.n_layer)]
    visible = visible_after_padding(padding, longest) if padding.any() else None
    model.hidden(ids, visible=visible, cache=KVCache(list(layers)))
    owners = torch.tensor([place for place, group in enumerate(groups) for _ in group.rows], device=model.device)
    cache = KVCache([layer.rows(owners) for layer in layers], longest)
    rows = [row for group in groups for row in group.rows]
    starts = [group.prefix for group in groups for _ in group.rows]
    rest = [row.tokens[start:-1] for row, start in zip(rows, starts, strict=True)]
    lengths = torch.tensor([len(tokens) for tokens in rest], device=model.device)[:, None]  # (B, 1)
    slots = torch.arange(1, max(map(len, rest)) + 1, device=model.device).minimum(lengths)  # pads stay in position
    seen = torch.tensor(starts, device=model.device)[:, None] + slots  # (B, T)
    hidden = model.hidden(_padded(rest).to(model.device), visible=seen, cache=cache)
    return _scores(model, hidden, rows, starts)


def _scores(
    model: Transformer, hidden: Tensor, rows: Sequence[_Row], starts: Sequence[int]
) -> list[tuple[int, Score]]:
    """The scored tokens of each row, from hidden states (B, T, D) that begin after ``starts`` of its tokens."""
    places = [
        (number, len(row.tokens) - 1 - start - back)
        for number, (row, start) in enumerate(zip(rows, starts, strict=True))
        for back in range(row.scored, 0, -1)
    ]
    targets = torch.tensor([token for row in rows for token in row.tokens[-row.scored :]], device=hidden.device)
    batch, slots = torch.tensor(places, device=hidden.device).T
    found: list[Tensor] = []
    likeliest: list[Tensor] = []
    for index in torch.arange(len(places), device=hidden.device).split(max(1, _LOGITS // model.head.out_features)):
        logits = model.head(hidden[batch[index], slots[index]]).float()  # (N, V)
        wanted = targets[index]
        found.append(-F.cross_entropy(logits, wanted, reduction="none"))  # training's; logsumexp differs by 1e-5
        likeliest.append(logits.argmax(1) == wanted)
    lengths = [row.scored for row in rows]
    logprobs = torch.cat(found).cpu().split(lengths)
    greedy = torch.cat(likeliest).cpu().split(lengths)
    return [
        (row.number, Score(values.tolist(), bool(hits.all())))
        for row, values, hits in zip(rows, logprobs, greedy, strict=True)
    ]


def _padded(rows: Sequence[list[int]]) -> Tensor:
    """On the right: (B, T)."""
    longest = max(map(len, rows))
    return torch.tensor([tokens + [_PAD] * (longest - len(tokens)) for tokens in rows])
