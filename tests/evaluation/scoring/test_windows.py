"""Windows over token sequences: each token scored once, with the context its convention prescribes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluated_models import EVERYTHING, evaluated_model, plain_score, sums, write_model_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.scoring.scoring import Request, Score, score_requests
from ssa.evaluation.scoring.windows import rolling_windows, stream_windows, strided_windows
from ssa.model.transformer import Transformer
from ssa.text.token_blocks import EvaluationBatches, visible_in_documents
from ssa.text.token_cache import TokenSplit

END = 0
sizes = st.integers(0, 70)
contexts = st.integers(1, 20)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> EvaluatedModel:
    return evaluated_model(write_model_folder(tmp_path_factory.mktemp("evaluated") / "model", "llama", EVERYTHING))


def stretches(requests: Sequence[Request]) -> list[tuple[int, int, int]]:
    """Start, start of the continuation and end of each request, for a sequence of its own indices."""
    for request in requests:
        whole = [*request.context, *request.continuation]
        assert request.context
        assert request.continuation
        assert whole == list(range(whole[0], whole[0] + len(whole)))
    return [(one.context[0], one.continuation[0], one.continuation[-1] + 1) for one in requests]


def scored_places(requests: Sequence[Request]) -> list[int]:
    return [place for request in requests for place in request.continuation]


@given(size=sizes, context=contexts, data=st.data())
@settings(deadline=None)
def test_stream_windows_score_all_but_the_first_token_once(size: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    windows = [window for (window,) in stream_windows(range(size), context, stride)]
    assert scored_places(windows) == list(range(1, size))
    places = stretches(windows)
    assert [begin for begin, _, _ in places] == [number * stride for number in range(len(places))]
    assert all(end - begin - 1 <= context for begin, _, end in places)  # inputs
    assert all(end - begin - 1 == context for begin, _, end in places[:-1])
    if stride < context:
        assert all(first - begin == context + 1 - stride for begin, first, _ in places[1:])


@given(size=st.integers(2, 70), context=contexts, batch_size=st.integers(1, 5))
@settings(deadline=None)
def test_training_evaluates_the_same_windows(size: int, context: int, batch_size: int) -> None:
    split = TokenSplit("validation", np.arange(size, dtype=np.uint16), 1, 1, 1, tokenizer=None)  # type: ignore[arg-type]
    batches = EvaluationBatches(split, context, batch_size)
    trained = [
        (*row, last) for ids, targets in batches for row, (*_, last) in zip(ids.tolist(), targets.tolist(), strict=True)
    ]
    evaluated = [(*window.context, *window.continuation) for (window,) in stream_windows(range(size), context, context)]
    assert trained == evaluated
    assert len(batches) == len(list(batches))


@given(size=sizes, window=st.integers(2, 20), data=st.data())
@settings(deadline=None)
def test_strided_windows_score_all_tokens_once(size: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    windows = list(strided_windows(range(size), window, stride))
    begins = range(0, size, window) if stride == window else [0]  # disjoint windows skip their first token
    assert scored_places(windows) == [place for place in range(size) if place not in begins]
    assert all(end - begin <= window for begin, _, end in stretches(windows))


@given(size=sizes, context=contexts)
@settings(deadline=None)
def test_rolling_windows_score_every_token_once(size: int, context: int) -> None:
    first, *others = [*rolling_windows(range(size), -1, context), None]  # -1 stands for the prefix
    windows = [window for window in (first, *others) if window is not None]
    assert scored_places(windows) == list(range(size))
    places = stretches(windows)
    assert all(begin == end - context - 1 for begin, _, end in places[1:])  # full inputs
    assert [first for _, first, _ in places] == list(range(0, size, context))


@given(size=sizes, context=contexts)
@settings(deadline=None)
def test_rolling_windows_match_the_harness(size: int, context: int) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    theirs = utils.get_rolling_token_windows(list(range(size)), -1, context, 1)
    assert [tuple(window) for window in rolling_windows(range(size), -1, context)] == [
        utils.make_disjoint_window(pair) for pair in theirs
    ]


@given(ids=st.lists(st.integers(END, 2), max_size=60), context=contexts, data=st.data())
@settings(deadline=None)
def test_restarts_score_all_tokens_once(ids: list[int], context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    windows = list(stream_windows(ids, context, stride, END))
    assert [token for window in windows for one in window for token in one.continuation] == ids[1:]
    for request in (one for window in windows for one in window):
        assert END not in [*request.context[1:], *request.continuation[:-1]]
        assert len(request.context) + len(request.continuation) - 1 <= context


def scored(evaluated: EvaluatedModel, requests: list[Request]) -> list[Score]:
    found: dict[int, Score] = {}
    score_requests(evaluated, requests, 64, None, found.update)
    return [found[number] for number in range(len(requests))]


def draw_ids(length: int, seed: int, every: int) -> list[int]:
    """Tokens with an end-of-text at the start and about every ``every`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 600, (length,), generator=generator)
    ids[torch.rand(length, generator=generator) < 1 / every] = END
    ids[0] = END
    return ids.tolist()


@pytest.mark.parametrize(("context", "stride"), [(32, 32), (32, 7), (64, 20), (5, 5)])
@pytest.mark.parametrize("every", [3, 20])
def test_restarts_match_document_mask_of_training(
    evaluated: EvaluatedModel, context: int, stride: int, every: int
) -> None:
    ids = draw_ids(150, context + stride, every)
    windows = list(stream_windows(ids, context, stride, END))
    logprobs = [
        value for score in scored(evaluated, [one for window in windows for one in window]) for value in score[0]
    ]
    assert logprobs == pytest.approx(list(masked(evaluated.model, ids, context, stride)), abs=2e-4)


@torch.inference_mode()
def masked(model: Transformer, ids: list[int], context: int, stride: int) -> Iterator[float]:
    """One forward pass per window, as in training."""
    done = 1
    for begin in range(0, len(ids), stride):
        window = torch.tensor([ids[begin : begin + context + 1]])
        if begin + window.size(1) <= done:
            return
        losses = model(window[:, :-1], window[:, 1:], visible_keys=visible_in_documents(window[:, :-1], END))
        yield from (-losses[0, done - begin - 1 :]).tolist()
        done = begin + window.size(1)


@torch.inference_mode()
def as_in_the_guide(model: Transformer, ids: list[int], length: int, stride: int) -> tuple[float, float]:
    """Mean loss of strided fixed-length windows, by masked labels: with the weights of Hugging Face's guide (one less
    than the number of scored tokens in overlapping windows), and with equal weights for all tokens.
    """
    guide: list[tuple[float, int]] = []
    exact: list[tuple[float, int]] = []
    reached = 0
    for start in range(0, len(ids), stride):
        stop = min(start + length, len(ids))
        inputs = torch.tensor(ids[start:stop])
        labels = inputs.clone()
        labels[: max(0, len(labels) - (stop - reached))] = -100
        shifted = labels[1:]
        loss = F.cross_entropy(model(inputs[None])[0, :-1], shifted, ignore_index=-100).item()
        guide.append((loss, int((labels != -100).sum()) - 1))
        exact.append((loss, int((shifted != -100).sum())))
        reached = stop
        if stop == len(ids):
            break
    guided, weighted = (
        math.fsum(loss * weight for loss, weight in means if weight) / sum(weight for _, weight in means)
        for means in (guide, exact)
    )
    return guided, weighted


@pytest.mark.parametrize(("length", "stride"), [(64, 16), (64, 50), (33, 32), (64, 64)])
def test_strided_perplexity_matches_the_guide(evaluated: EvaluatedModel, length: int, stride: int) -> None:
    ids = draw_ids(1500, 1, 50)
    scores = scored(evaluated, list(strided_windows(ids, length, stride)))
    loss = -math.fsum(sums(scores)) / sum(len(score.logprobs) for score in scores)
    guide, weighted = as_in_the_guide(evaluated.model, ids, length, stride)
    assert loss == pytest.approx(weighted, rel=1e-6)
    assert loss == pytest.approx(guide, rel=1e-3)


def test_more_context_changes_the_result(evaluated: EvaluatedModel) -> None:
    ids = draw_ids(200, 2, 50)
    found = [sums(scored(evaluated, list(strided_windows(ids, 64, stride)))) for stride in (63, 16)]
    assert abs(math.fsum(found[0]) - math.fsum(found[1])) > 1e-2


def test_rolling_windows_match_plain_forward_passes(evaluated: EvaluatedModel) -> None:
    ids = draw_ids(150, 3, 50)
    windows = list(rolling_windows(ids, 5, 64))
    assert [len(window.context) for window in windows] == [1, 1, 43]  # the last extends to the left
    found = sums(scored(evaluated, windows))
    bounds = pairwise([0, 64, 128, 150])
    inputs = [[5, *ids[:64]], ids[63:128], ids[85:150]]
    wanted = [
        sum(plain_score(evaluated.model, Request(tokens[: -(end - begin)], tokens[-(end - begin) :]), 64)[0])
        for tokens, (begin, end) in zip(inputs, bounds, strict=True)
    ]
    assert found == pytest.approx(wanted, abs=1e-3)
