"""Generation, and what it rests on: with cached keys, left padding or packed documents the logits stay the same."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from ssa.model.config import ModelConfig
from ssa.model.generation import TextStream, generate, sample
from ssa.model.kv_cache import KVCache, visible_after_padding
from ssa.model.transformer import Transformer

VOCABULARY = 50
LENGTH = 24
SMALL = ["n_layer=2", "n_head=2", "n_kv_head=1", "d_model=16", "max_positions=32"]
ACTING = ["temperature.yarn_factor=4.0"]  # from the start
BACKBONES = ["gpt2", "pythia", "llama"]
RULES = sorted(path.stem for path in (ROOT / "conf" / "model" / "temperature").glob("*.yaml"))
every_rule = pytest.mark.parametrize("rule", RULES)
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)


@functools.cache
def build(backbone: str, rule: str) -> Transformer:
    """A tiny model with grouped-query attention and large weights, its temperatures far from where they start."""
    overrides = [f"model/temperature={rule}", *(f"model.{setting}" for setting in SMALL + ACTING)]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = OmegaConf.to_container(compose(f"model/{backbone}", overrides), resolve=True)
    assert isinstance(composed, dict)
    model = Transformer(ModelConfig.from_plain(composed["model"]), VOCABULARY).eval()
    return scrambled(model)


@torch.no_grad()
def scrambled(model: Transformer) -> Transformer:
    """At std 0.02 attention would be near uniform, and mistakes in it not to be seen."""
    generator = torch.Generator().manual_seed(1)
    temperatures = {id(parameter) for module in model.temperatures() for parameter in module.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in temperatures:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    for module in model.temperatures():  # after the rest, which is then the same for every rule
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.7)
    if model.log_frequency is not None:
        model.log_frequency.copy_(torch.randn(model.log_frequency.shape, generator=generator))
    return model


def random_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_in_chunks(model: Transformer, ids: Tensor, sizes: list[int], visible_keys: Tensor | None = None) -> Tensor:
    """The logits of `ids`, given to the model a few tokens at a time, with a cache."""
    cache, start, parts = KVCache.empty(model.config.n_layer), 0, []
    for size in sizes:
        chunk = slice(start, start + size)
        seen = visible_keys[..., chunk] if visible_keys is not None else None
        parts.append(model(ids[:, chunk], visible_keys=seen, cache=cache))
        start += size
    assert start == ids.size(1) == cache.length
    return torch.cat(parts, dim=1)


CHUNKS = {"token by token": [1] * LENGTH, "several at once": [5, 1, 2, 9, 7], "a prompt, then tokens": [20, 1, 1, 1, 1]}


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-5)


@every_backbone
@every_rule
@torch.no_grad()
def test_cached_logits_equal_uncached_ones(backbone: str, rule: str) -> None:
    model, ids = build(backbone, rule), random_ids(3, LENGTH)
    expected = model(ids)
    for sizes in CHUNKS.values():
        close(logits_in_chunks(model, ids, sizes), expected)


@every_backbone
@every_rule
@torch.no_grad()
def test_left_padding_changes_no_logits(backbone: str, rule: str) -> None:
    model, padding = build(backbone, rule), torch.tensor([0, 3, 17, 23])
    ids = random_ids(4, LENGTH)
    visible_keys = visible_after_padding(padding, LENGTH)
    for actual in (
        model(ids, visible_keys=visible_keys),
        *(logits_in_chunks(model, ids, c, visible_keys) for c in CHUNKS.values()),
    ):
        for row, pads in enumerate(padding.tolist()):
            close(actual[row, pads:], model(ids[row : row + 1, pads:])[0])


@every_backbone
@every_rule
@torch.no_grad()
def test_packed_documents_do_not_see_each_other(backbone: str, rule: str) -> None:
    model, ids = build(backbone, rule), random_ids(2, LENGTH)
    packings = [[7, 5, 1, 11], [1, 20, 3]]
    visible_keys = torch.stack([torch.cat([torch.arange(1, n + 1) for n in lengths]) for lengths in packings])
    for actual in (
        model(ids, visible_keys=visible_keys),
        *(logits_in_chunks(model, ids, c, visible_keys) for c in CHUNKS.values()),
    ):
        for row, lengths in enumerate(packings):
            for document, logits in zip(ids[row].split(lengths), actual[row].split(lengths), strict=True):
                close(logits, model(document[None])[0])
    close(model(ids, visible_keys=visible_keys[0])[0], model(ids, visible_keys=visible_keys)[0])


@every_backbone
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "none"])
@torch.no_grad()
def test_the_rules_act_in_these_tests(backbone: str, rule: str) -> None:
    ids = random_ids(1, LENGTH)
    difference = (build(backbone, rule)(ids) - build(backbone, "none")(ids)).abs()
    assert difference[0, 1:].max() > 1e-3  # 50 times the tolerance of `close`; the first query sees one key


@torch.no_grad()
def argmax_loop(model: Transformer, prompt: list[int], steps: int) -> list[int]:
    ids = torch.tensor([prompt])
    for _ in range(steps):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(dim=-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


PROMPTS = [[3], random_ids(9, seed=1).tolist(), random_ids(4, seed=2).tolist()]


@every_backbone
@every_rule
def test_greedy_generation_is_an_argmax_loop_without_a_cache(backbone: str, rule: str) -> None:
    model = build(backbone, rule)
    expected = [argmax_loop(model, prompt, 12) for prompt in PROMPTS]
    assert generate(model, PROMPTS, 12, greedy=True) == expected
    assert generate(model, PROMPTS[1:2], 12, greedy=True) == expected[1:2]


@pytest.fixture
def model(model_config: Callable[..., ModelConfig]) -> Transformer:
    return scrambled(Transformer(model_config(ssa=True), VOCABULARY)).eval()


def test_equal_seeds_give_equal_samples(model: Transformer) -> None:
    first = generate(model, PROMPTS, 30, seed=5)
    assert [len(row) for row in first] == [30, 30, 30]
    assert generate(model, PROMPTS, 30, seed=5) == first
    assert all(a != b for a, b in zip(first, generate(model, PROMPTS, 30, seed=6), strict=True))


def test_a_sample_does_not_depend_on_the_rest_of_the_batch(model: Transformer) -> None:
    together = generate(model, PROMPTS, 30, temperature=0.9, top_p=0.9, seed=5)
    for row, prompt in enumerate(PROMPTS):
        assert generate(model, [prompt], 30, temperature=0.9, top_p=0.9, seed=5 + row) == [together[row]]


def test_equal_prompts_get_different_samples(model: Transformer) -> None:
    first, second = generate(model, [[3], [3]], 30)
    assert first != second


def test_a_stop_id_ends_its_row_alone_and_is_left_out(model: Transformer) -> None:
    free = generate(model, PROMPTS, 30, seed=5)
    stop = free[1][4]
    told: list[list[int]] = [[], [], []]
    stopped = generate(model, PROMPTS, 30, seed=5, stop=[stop], on_token=lambda row, token: told[row].append(token))
    assert stopped == [row[: row.index(stop)] if stop in row else row for row in free]
    assert len(stopped[1]) <= 4
    assert told == stopped


def test_generation_ends_when_all_rows_have(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(model, "hidden", lambda *a, **k: calls.append(1) or Transformer.hidden(model, *a, **k))
    assert generate(model, [[3]], 30, stop=range(VOCABULARY)) == [[]]
    assert len(calls) == 1


def test_nothing_to_generate(model: Transformer) -> None:
    assert generate(model, [], 3) == []
    assert generate(model, [[1], [2]], 0) == [[], []]


def test_dropout_is_off_and_the_mode_kept(model_config: Callable[..., ModelConfig]) -> None:
    model = scrambled(Transformer(model_config(dropout=0.5), VOCABULARY)).train()
    assert generate(model, [[3]], 9, greedy=True) == generate(model, [[3]], 9, greedy=True)
    assert model.training
    model.eval()
    generate(model, [[3]], 1)
    assert not model.training


def test_learned_positions_end(model: Transformer) -> None:
    assert len(generate(model, [[1] * 60], 4)[0]) == 4
    with pytest.raises(ValueError, match=r"^max_new_tokens=5: .* 60 tokens .* 64 positions; valid: up to 4$"):
        generate(model, [[1], [1] * 60], 5)


def test_rotary_positions_do_not(model_config: Callable[..., ModelConfig]) -> None:
    model = Transformer(model_config(positions="rotary", max_positions=8), VOCABULARY)
    assert len(generate(model, [[1] * 7], 9)[0]) == 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"prompts": [[1], []]}, "no tokens"),
    ],
)
def test_what_cannot_be_is_refused(model: Transformer, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(model, **{"prompts": [[1]], "max_new_tokens": 3, **settings})  # type: ignore[arg-type]


PROBABILITIES = torch.tensor([0.15, 0.5, 0.05, 0.3])


def shares(temperature: float = 1.0, top_p: float = 1.0) -> list[float]:
    """How often each token is sampled, over evenly spread random numbers."""
    uniform = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    chosen = sample(PROBABILITIES.log().expand(1000, -1), uniform, temperature, top_p)
    return (chosen.bincount(minlength=4) / 1000).tolist()


def test_samples_follow_the_probabilities() -> None:
    assert shares() == pytest.approx(PROBABILITIES.tolist(), abs=1e-3)


def test_the_sampling_temperature_divides_the_logits() -> None:
    assert shares(temperature=2.0) == pytest.approx((PROBABILITIES.log() / 2).softmax(0).tolist(), abs=1e-3)
    assert shares(temperature=0.01) == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1e-9, [1]), (0.49, [1]), (0.51, [1, 3]), (0.79, [1, 3]), (0.81, [0, 1, 3]), (0.96, range(4))]
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(top_p: float, kept: list[int]) -> None:
    nucleus = torch.zeros(4)
    nucleus[list(kept)] = PROBABILITIES[list(kept)]
    assert shares(top_p=top_p) == pytest.approx((nucleus / nucleus.sum()).tolist(), abs=2e-3)


def test_the_largest_random_number_stays_in_the_nucleus() -> None:
    logits = torch.zeros(1, 50_000)
    almost_one = torch.tensor([1.0], dtype=torch.float64).nextafter(torch.tensor(0.0, dtype=torch.float64))
    for top_p in (0.3, 1.0):
        assert 0 <= int(sample(logits, almost_one, top_p=top_p)) < 50_000


@pytest.fixture
def bytes_tokenizer() -> Tokenizer:
    """One token a byte."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(sorted(alphabet))}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def test_text_comes_in_whole_characters(bytes_tokenizer: Tokenizer) -> None:
    text = "né 日本 🙂\n!"
    stream = TextStream(bytes_tokenizer.decode)
    pieces = [stream.push(token) for token in bytes_tokenizer.encode(text).ids]
    assert [piece for piece in pieces if piece] == list(text)
    assert stream.flush() == ""


def test_what_never_becomes_a_character_is_shown_in_the_end(bytes_tokenizer: Tokenizer) -> None:
    stream = TextStream(bytes_tokenizer.decode)
    ids = bytes_tokenizer.encode("🙂a🙂").ids
    assert [stream.push(token) for token in ids[1:-1]] == [
        "",
        "",
        "",
        "\N{REPLACEMENT CHARACTER}" * 3 + "a",
        "",
        "",
        "",
    ]
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"


def test_spaces_before_words_survive() -> None:
    """As in Llama-2's tokenizer, whose decoder drops the space of the first word."""
    tokenizer = Tokenizer(models.WordLevel({"▁the": 0, "▁cat": 1}, unk_token="▁the"))
    tokenizer.decoder = decoders.Metaspace()
    stream = TextStream(tokenizer.decode)
    assert [stream.push(token) for token in (0, 1, 0)] == ["the", " cat", " the"]
