"""Log-likelihoods of continuations, in batches of similar length, with shared prefixes computed once.

Requests with a common prefix, such as the answers to one question, form a *group*: the prefix goes through the model
once, and its keys and values are reused for every row.  The output matrix is applied only at positions that predict a
continuation.

Shapes: B batch, T tokens, K key-value heads, d head dimension, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ssa.device import is_out_of_memory
from ssa.errors import NotFinite, UserError
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.model.kv_cache import GrowingCache, KVCache
from ssa.model.language_model import LanguageModel

_MIN_SAVED = 8  # tokens that a shared prefix must save, as rows without one need no mask,
_MIN_SHARE = 1 / 16  # and share of all tokens
_GROUP_ROWS = 32  # rows per prefix in automatic batches
_CACHED_TOKENS = 8192  # maximum number of prefix tokens whose keys and values are kept
_LOGITS = 2**25  # logits computed at once
_ROWS, _TOKENS = 256, {"cpu": 2048, "mps": 8192, "cuda": 65536}  # limits of an automatic batch

Keep = Callable[[list[tuple[int, "Score"]]], None]  # called with the index and score of each request of a batch
_InRows = Callable[[Callable[[list[int]], None], list[int]], None]


class Request(NamedTuple):
    """Token ids of a context and its continuation, at least one each."""

    context: list[int]
    continuation: list[int]


class Score(NamedTuple):
    """Log-likelihood of each token of a continuation, in nats, and whether greedy decoding yields it."""

    logprobs: list[float]
    greedy: bool


class _Row(NamedTuple):
    number: int  # index of the request
    tokens: list[int]  # truncated on the left; the last is only predicted
    scored: int  # number of scored tokens at the end


class _Group(NamedTuple):
    prefix: int  # length of the shared prefix
    rows: list[_Row]


class _CachedPrefix(NamedTuple):
    layers: list[tuple[Tensor, Tensor]]  # keys and values, (T, K, d) each
    hidden: Tensor  # (T, D)


def score_requests(
    evaluated: EvaluatedModel,
    requests: Sequence[Request],
    max_length: int,
    batch_size: int | None,
    keep: Keep,
    answered: Collection[int] = (),
) -> None:
    """Score requests in batches of ``batch_size`` rows (None: automatic); inputs over ``max_length`` lose their start.

    Batches do not depend on ``answered``, the indices of requests whose scores are known, so that an interrupted task
    resumes bit for bit: a batch is left out if all of it is answered.

    Raises:
        UserError: a continuation exceeds ``max_length``, memory runs out, or a log-likelihood is not finite.
    """
    rows = [_row(number, request, max_length) for number, request in enumerate(requests)]
    shares = evaluated.model_config.hf_config is None  # only this project's own model takes a cache by rows
    groups = _groups(rows, batch_size) if shares else [_Group(0, [row]) for row in rows]
    groups.sort(key=lambda group: max(len(row.tokens) for row in group.rows), reverse=True)

    def in_rows(run: Callable[[list[int]], None], lengths: list[int]) -> None:
        with torch.inference_mode(), evaluated.autocast():
            in_batches(run, lengths, evaluated.device, batch_size)

    def wanted(rows: list[_Row]) -> bool:
        return not all(row.number in answered for row in rows)

    lone = [row for group in groups if not group.prefix for row in group.rows]

    def score_lone(indices: list[int]) -> None:
        rows = [lone[index] for index in indices]
        if wanted(rows):
            keep(_score_rows(evaluated.model, rows))

    in_rows(score_lone, [len(row.tokens) - 1 for row in lone])
    for chunk in _chunks([group for group in groups if group.prefix]):
        if wanted([row for group in chunk for row in group.rows]):
            _score_groups(evaluated.model, chunk, in_rows, keep, wanted)


def input_tokens(request: Request) -> int:
    """Input length of a request, ignoring shared prefixes."""
    return len(request.context) + len(request.continuation) - 1


def _row(number: int, request: Request, max_length: int) -> _Row:
    scored = len(request.continuation)
    if scored > max_length:
        raise UserError(f"context={max_length}: too short for a continuation of {scored} tokens")
    return _Row(number, [*request.context, *request.continuation][-(max_length + 1) :], scored)


def _groups(rows: Sequence[_Row], batch_size: int | None) -> list[_Group]:
    """Group neighbors in lexicographic order while each new row saves more tokens."""
    groups: list[_Group] = []
    for row in sorted(rows, key=lambda row: row.tokens):
        sharable = len(row.tokens) - 2  # at least one input must remain
        if groups:
            prefix, together = groups[-1]
            common = min(prefix, _common(together[0].tokens, row.tokens), sharable)
            saved, before = len(together) * common, (len(together) - 1) * prefix
            needed = max(_MIN_SAVED, before, _MIN_SHARE * sum(len(one.tokens) for one in [*together, row]))
            if len(together) < (batch_size or _GROUP_ROWS) and saved >= needed:
                groups[-1] = _Group(common, [*together, row])
                continue
        groups.append(_Group(sharable, [row]))
    return [group if len(group.rows) > 1 else _Group(0, group.rows) for group in groups]


def _chunks(groups: Sequence[_Group]) -> Iterator[list[_Group]]:
    """Groups whose prefixes fit in `_CACHED_TOKENS` together."""
    chunk: list[_Group] = []
    for group in groups:
        if sum(other.prefix for other in chunk) + group.prefix > _CACHED_TOKENS and chunk:
            yield chunk
            chunk = []
        chunk.append(group)
    if chunk:
        yield chunk


def _common(one: list[int], other: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _score_rows(model: LanguageModel, rows: Sequence[_Row]) -> list[tuple[int, Score]]:
    """Score rows without a shared prefix, padded on the right, where causal attention ignores padding."""
    hidden = model.hidden(_padded([row.tokens[:-1] for row in rows]).to(model.device))  # (B, T, D)
    return _scores(model, rows, [states[: len(row.tokens) - 1] for states, row in zip(hidden, rows, strict=True)])


def _score_groups(
    model: LanguageModel, groups: Sequence[_Group], in_rows: _InRows, keep: Keep, wanted: Callable[[list[_Row]], bool]
) -> None:
    """Run the prefixes, then the rest of each row, each in batches of similar length."""
    groups = sorted(groups, key=lambda group: group.prefix, reverse=True)
    prefixes = [group.rows[0].tokens[: group.prefix] for group in groups]
    cached: list[_CachedPrefix] = []
    in_rows(
        lambda indices: cached.extend(_cache_prefixes(model, [prefixes[index] for index in indices])),
        list(map(len, prefixes)),
    )
    rows = [(row, prefix) for group, prefix in zip(groups, cached, strict=True) for row in group.rows]
    rows.sort(key=lambda pair: len(pair[0].tokens) - len(pair[1].hidden), reverse=True)
    new = [len(row.tokens) - len(prefix.hidden) for row, prefix in rows]

    def score(indices: list[int]) -> None:
        batch = [rows[index] for index in indices]
        if wanted([row for row, _ in batch]):
            keep(_score_after_prefix(model, batch))

    in_rows(
        score,
        # a cached prefix costs less than new tokens
        [max(length, len(row.tokens) // 4) for length, (row, _) in zip(new, rows, strict=True)],
    )


def _cache_prefixes(model: LanguageModel, prefixes: Sequence[list[int]]) -> list[_CachedPrefix]:
    layers = [GrowingCache(max(map(len, prefixes))) for _ in range(model.config.n_layer)]
    hidden = model.hidden(_padded(prefixes).to(model.device), cache=KVCache(list(layers)))  # (B, T, D)
    stored = [tuple(tensor.transpose(1, 2) for tensor in layer.held) for layer in layers]  # (B, T, K, d) each
    return [
        _CachedPrefix([(key[row, :length], value[row, :length]) for key, value in stored], hidden[row, :length])
        for row, length in enumerate(map(len, prefixes))
    ]


def _score_after_prefix(model: LanguageModel, rows: Sequence[tuple[_Row, _CachedPrefix]]) -> list[tuple[int, Score]]:
    """Score rows after their prefixes; prefixes are padded on the left, the rest on the right."""
    starts = [len(prefix.hidden) for _, prefix in rows]
    rest = [row.tokens[start:-1] for (row, _), start in zip(rows, starts, strict=True)]
    capacity = max(starts) + max(map(len, rest))
    layers = [GrowingCache(capacity) for _ in range(model.config.n_layer)]
    for number, layer in enumerate(layers):
        layer.append(*(_padded_left([prefix.layers[number][which] for _, prefix in rows]) for which in (0, 1)))
    lengths = torch.tensor([len(tokens) for tokens in rest], device=model.device)[:, None]  # (B, 1)
    # Padding repeats the last position.
    slots = torch.arange(1, max(map(len, rest)) + 1, device=model.device).minimum(lengths)
    visible_keys = torch.tensor(starts, device=model.device)[:, None] + slots  # (B, T)
    cache = KVCache(list(layers), max(starts))
    hidden = model.hidden(_padded(rest).to(model.device), visible_keys=visible_keys, cache=cache)  # (B, T, D)
    states = [
        torch.cat([prefix.hidden, after[: len(tokens)]])
        for (_, prefix), after, tokens in zip(rows, hidden, rest, strict=True)
    ]
    return _scores(model, [row for row, _ in rows], states)


def _scores(model: LanguageModel, rows: Sequence[_Row], states: Sequence[Tensor]) -> list[tuple[int, Score]]:
    """Score the last tokens of each row, given the hidden states of its inputs, (T, D)."""
    hidden = torch.cat([of_row[-row.scored :] for row, of_row in zip(rows, states, strict=True)])  # (N, D)
    targets = torch.tensor([token for row in rows for token in row.tokens[-row.scored :]], device=hidden.device)
    losses: list[Tensor] = []
    is_argmax: list[Tensor] = []
    at_once = max(1, _LOGITS // model.vocab_size)
    for some, wanted in zip(hidden.split(at_once), targets.split(at_once), strict=True):  # type: ignore[no-untyped-call]
        logits = model.logits(some).float()  # (N, V)
        losses.append(F.cross_entropy(logits, wanted, reduction="none"))  # as in training, to the last bit
        is_argmax.append(logits.argmax(1) == wanted)
    lengths = [row.scored for row in rows]
    nll = torch.cat(losses).cpu()
    if not nll.isfinite().all():
        raise NotFinite("log-likelihood", nll[~nll.isfinite()][0].item())
    logprobs = (-nll).split(lengths)  # type: ignore[no-untyped-call]
    greedy = torch.cat(is_argmax).cpu().split(lengths)  # type: ignore[no-untyped-call]
    return [
        (row.number, Score(values.tolist(), bool(hits.all())))
        for row, values, hits in zip(rows, logprobs, greedy, strict=True)
    ]


def _padded(rows: Sequence[list[int]]) -> Tensor:
    """Pad token ids on the right, (B, T), with any id, as padding is masked."""
    return pad_sequence([torch.tensor(tokens) for tokens in rows], batch_first=True)


def _padded_left(rows: list[Tensor]) -> Tensor:
    """Pad keys or values on the left, (T, K, d) each -> (B, K, T, d)."""
    return pad_sequence(rows, batch_first=True, padding_side="left").transpose(1, 2)


def in_batches(
    run: Callable[[list[int]], None], lengths: Sequence[int], device: torch.device, batch_size: int | None = None
) -> None:
    """Run requests of these lengths in order, in batches; halve automatic batches that do not fit in memory.

    ``run`` is called with the indices of each batch, of ``batch_size`` rows (None: automatic, by device).
    """
    fitting = len(lengths)  # upper bound of a batch that fits in memory

    def attempt(indices: list[int]) -> None:
        nonlocal fitting
        if len(indices) <= fitting:
            try:
                run(indices)
                return
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                where = f"out of memory on {device.type}"
                if len(indices) == 1:
                    raise UserError(f"context: {where} at {lengths[indices[0]]} tokens; try fewer") from None
                if batch_size is not None:
                    raise UserError(f"batch_size={batch_size}: {where}; try a smaller one") from None
            fitting = len(indices) // 2
        attempt(indices[: len(indices) // 2])
        attempt(indices[len(indices) // 2 :])

    for indices in _batches(lengths, device, batch_size):
        attempt(indices)


def _batches(lengths: Sequence[int], device: torch.device, batch_size: int | None) -> Iterator[list[int]]:
    indices: list[int] = []
    longest = 0
    for index, length in enumerate(lengths):
        longest = max(longest, length)
        if indices and len(indices) >= (batch_size or max(1, min(_ROWS, _TOKENS[device.type] // longest))):
            yield indices
            indices, longest = [], length
        indices.append(index)
    if indices:
        yield indices
