"""Scoring in batches with shared prefixes: equal to scoring one at a time, and no token computed twice."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluated_models import EVERYTHING, VANILLA, Seen, evaluated_model, plain_score, sums, write_model_folder
from pretrained_folders import SSA, VOCAB

from ssa.errors import UserError
from ssa.evaluation.scoring import scoring
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.scoring.scoring import Request, Score, in_batches, score_requests
from ssa.model.config import TemperatureConfig, Terms
from ssa.model.generation import generate

CONTEXT = 64  # all learned positions
RULES = TemperatureConfig(name="rules", query=Terms(token="frequency", position="ssmax"))
MODELS = {
    "gpt2": ("gpt2", VANILLA),
    "gpt2, everything scaled": ("gpt2", EVERYTHING),
    "neox": ("gpt_neox", VANILLA),
    "neox, ssa": ("gpt_neox", SSA),
    "llama, grouped": ("llama", VANILLA),
    "llama, grouped, everything scaled": ("llama", EVERYTHING),
    "llama, frequencies": ("llama", RULES),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("subjects")
    return {
        name: write_model_folder(root / str(number), model_type, temperature)
        for number, (name, (model_type, temperature)) in enumerate(MODELS.items())
    }


@pytest.fixture(params=MODELS)
def evaluated(request: pytest.FixtureRequest, folders: dict[str, Path]) -> EvaluatedModel:
    return evaluated_model(folders[request.param])


@pytest.fixture
def one(folders: dict[str, Path]) -> EvaluatedModel:
    """A model whose temperatures are sensitive to positions."""
    return evaluated_model(folders["llama, grouped, everything scaled"])


def scored(
    evaluated: EvaluatedModel, requests: list[Request], batch_size: int | None = None, context: int = CONTEXT
) -> list[Score]:
    kept: dict[int, Score] = {}

    def keep(scores: list[tuple[int, Score]]) -> None:
        assert not kept.keys() & dict(scores).keys()
        kept.update(scores)

    score_requests(evaluated, requests, context, batch_size, keep)
    assert sorted(kept) == list(range(len(requests)))
    return [kept[number] for number in range(len(requests))]


def assert_plain(
    evaluated: EvaluatedModel, requests: list[Request], scores: list[Score], context: int = CONTEXT
) -> None:
    for request, score in zip(requests, scores, strict=True):
        logprobs, greedy = plain_score(evaluated.model, request, context)
        assert score.logprobs == pytest.approx(logprobs, abs=2e-4, rel=1e-4), request
        assert score.greedy == greedy


def draw_ids(draw: random.Random, length: int) -> list[int]:
    return [draw.randrange(VOCAB) for _ in range(length)]


def draw_requests(seed: int, number: int = 24) -> list[Request]:
    """Requests with shared prefixes of all kinds: duplicates, one context with several continuations, prefixes that end
    within a continuation, single tokens, inputs longer than the context.
    """
    draw = random.Random(seed)
    bases = [draw_ids(draw, draw.choice([2, 12, 40, 64, 65, 66, 100])) for _ in range(4)]
    requests: list[Request] = []
    while len(requests) < number:
        base = draw.choice(bases)
        kept = base[: draw.randint(1, len(base))]
        tokens = kept + draw_ids(draw, draw.choice([0, 1, 2, 5, 30]))
        if len(tokens) < 2:
            tokens += draw_ids(draw, 1)
        split = draw.randint(max(1, len(tokens) - CONTEXT), len(tokens) - 1)
        request = Request(tokens[:split], tokens[split:])
        requests += [request] * draw.choice([1, 1, 1, 2])
        if draw.random() < 0.3:
            requests += [Request(request.context, draw_ids(draw, draw.randint(1, 4))) for _ in range(3)]
    return [*requests, Request([7], [8]), Request([7], [8]), Request([7], [9])]


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_matches_scoring_one_at_a_time(evaluated: EvaluatedModel, batch_size: int | None) -> None:
    for seed in range(2):
        requests = draw_requests(seed)
        assert_plain(evaluated, requests, scored(evaluated, requests, batch_size))


@pytest.mark.parametrize("seed", range(2, 8))
def test_small_limits(one: EvaluatedModel, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_CACHED_TOKENS", 50)
    monkeypatch.setattr(scoring, "_LOGITS", 5 * VOCAB)
    monkeypatch.setattr(scoring, "_GROUP_ROWS", 3)
    requests = draw_requests(seed)
    assert_plain(one, requests, scored(one, requests), CONTEXT)


@pytest.mark.parametrize("context", [1, 2, 9])
def test_truncates_on_the_left(evaluated: EvaluatedModel, context: int) -> None:
    tokens = draw_ids(random.Random(1), 12)
    requests = [Request(tokens[:split], tokens[split : split + 1]) for split in range(1, 12)] * 2
    scores = scored(evaluated, requests, context=context)
    assert_plain(evaluated, requests, scores, context)
    assert context > 9 or sums(scores) != pytest.approx(
        sums(scored(evaluated, requests)), abs=1e-2
    )  # truncation changes the scores


def test_uses_the_last_learned_position(folders: dict[str, Path]) -> None:
    evaluated = evaluated_model(folders["gpt2, everything scaled"])
    tokens = draw_ids(random.Random(2), CONTEXT + 1)
    requests = [Request(tokens[:split], tokens[split:]) for split in (1, 30, 63, 64)]
    assert_plain(evaluated, requests, scored(evaluated, requests))
    with pytest.raises(IndexError):  # beyond the embedding
        scored(evaluated, [Request([*tokens, 1], [2])], context=CONTEXT + 1)


def test_recognizes_greedy_continuations(evaluated: EvaluatedModel) -> None:
    draw = random.Random(3)
    prompts = [draw_ids(draw, length) for length in (1, 5, 5, 20)]
    answers = generate(evaluated.model, prompts, 6, greedy=True)
    almost = [[*answer[:-1], (answer[-1] + 1) % VOCAB] for answer in answers]
    right = [Request(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    wrong = [Request(prompt, answer) for prompt, answer in zip(prompts, almost, strict=True)]
    assert [score.greedy for score in scored(evaluated, right + wrong)] == [True] * 4 + [False] * 4


def test_refuses_long_continuations_before_computing(one: EvaluatedModel) -> None:
    requests = [Request([1, 2], [3]), Request([1], list(range(9)))]
    seen = Seen(one.model)
    with pytest.raises(UserError, match="context=8: too short for a continuation of 9 tokens"):
        scored(one, requests, context=8)
    assert seen.shapes == []
    scored(one, requests, context=9)


def test_no_requests(one: EvaluatedModel) -> None:
    assert scored(one, []) == []


def test_computes_shared_prefix_once(one: EvaluatedModel) -> None:
    draw = random.Random(5)
    given = draw_ids(draw, 40)
    answers = [[first, *draw_ids(draw, 2)] for first in (10, 20, 30, 40)]  # their first tokens differ
    requests = [Request(given, answer) for answer in answers]
    seen = Seen(one.model)
    together = scored(one, requests)
    assert seen.shapes == [(1, 40), (4, 2)]
    alone = Seen(one.model)
    assert sums(scored(one, requests, 1)) == pytest.approx(sums(together), abs=1e-4)
    assert alone.shapes == [(1, 42)] * 4


def test_prefix_may_extend_into_continuations(one: EvaluatedModel) -> None:
    tokens = draw_ids(random.Random(6), 50)
    requests = [Request(tokens[:10], [*tokens[10:45], last, 1]) for last in (2, 3, 4)] + [Request(tokens[:30], [1, 2])]
    seen = Seen(one.model)
    assert_plain(one, requests[:3], scored(one, requests[:3]))
    assert seen.shapes[:2] == [(1, 45), (3, 1)]
    assert_plain(one, requests, scored(one, requests))


def test_cost_of_many_questions(one: EvaluatedModel) -> None:
    draw = random.Random(7)
    questions = [draw_ids(draw, draw.randint(20, 60)) for _ in range(12)]
    requests = [Request(question, [answer]) for question in questions for answer in range(5)]
    draw.shuffle(requests)
    seen = Seen(one.model)
    assert_plain(one, requests, scored(one, requests))
    computed = seen.tokens - sum(len(request.context) for request in requests)  # without the reference passes
    least = sum(len(question) for question in questions)
    assert computed < 1.6 * least  # 5 without sharing; the rest is padding and the last token of each row


def test_bf16_is_close(folders: dict[str, Path]) -> None:
    for name in ("gpt2, everything scaled", "llama, grouped, everything scaled"):
        requests = draw_requests(9)
        exact = scored(evaluated_model(folders[name]), requests)
        rough = scored(evaluated_model(folders[name], precision="bf16-mixed"), requests)
        lengths = [len(score.logprobs) for score in exact]
        means, wanted = (np.array(sums(scores)) / lengths for scores in (rough, exact))
        assert means == pytest.approx(wanted, abs=0.1, rel=0.02)
        assert (means != wanted).any()


def test_halves_batches_when_out_of_memory() -> None:
    done: list[int] = []
    tried: list[int] = []

    def run(items: list[int]) -> None:
        tried.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("no room")
        done.extend(items)

    in_batches(run, [100] * 30, torch.device("cpu"))
    assert done == list(range(30))
    assert tried[:4] == [20, 10, 5, 2]  # 2,048 tokens per batch on a CPU
    assert max(tried[3:]) <= 2  # sizes that failed are not tried again
    with pytest.raises(UserError, match="batch_size=5: out of memory on cpu; try a smaller one"):
        in_batches(run, [100] * 30, torch.device("cpu"), 5)


def test_out_of_memory_at_one_row() -> None:
    def run(items: list[int]) -> None:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(UserError, match="context: out of memory on cpu at 100 tokens; try fewer"):
        in_batches(run, [100] * 4, torch.device("cpu"))


def test_out_of_memory_on_cpu() -> None:
    done: list[int] = []

    def run(items: list[int]) -> None:
        if len(items) > 1:
            torch.empty(2**60)  # torch's own message
        done.extend(items)

    in_batches(run, [100] * 4, torch.device("cpu"))
    assert done == [0, 1, 2, 3]


def test_other_errors_propagate() -> None:
    def run(items: list[int]) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        in_batches(run, [100] * 4, torch.device("cpu"))


def test_scores_unchanged_when_out_of_memory(one: EvaluatedModel) -> None:
    requests = draw_requests(10)
    wanted = scored(one, requests)
    seen = Seen(one.model, fail_above=2)
    assert sums(scored(one, requests)) == pytest.approx(sums(wanted), abs=1e-3)
    assert max(rows for rows, _ in seen.shapes) == 2
    with pytest.raises(UserError, match="batch_size=4: out of memory"):
        scored(one, requests, 4)


@pytest.mark.parametrize("seed", range(5))
def test_batches_are_ordered_and_bounded(seed: int) -> None:
    draw = random.Random(seed)
    lengths = sorted((draw.choice([1, 3, 50, 700, 3000]) for _ in range(draw.randint(1, 900))), reverse=True)
    batches: list[list[int]] = []
    in_batches(batches.append, lengths, torch.device("cpu"))
    assert [item for items in batches for item in items] == list(range(len(lengths)))
    most = scoring._TOKENS["cpu"]
    assert all(len(items) * lengths[items[0]] <= most or len(items) == 1 for items in batches)
    assert max(map(len, batches)) <= scoring._ROWS
    by_rows: list[list[int]] = []
    in_batches(by_rows.append, lengths, torch.device("cpu"), 7)
    assert [len(items) for items in by_rows[:-1]] == [7] * (len(by_rows) - 1)
