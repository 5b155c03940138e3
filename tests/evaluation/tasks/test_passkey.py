from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from data_configs import data_config
from pretrained_folders import write_files
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import models, pre_tokenizers, trainers

from ssa.command_line.compose import configured
from ssa.config import DataConfig, parse
from ssa.errors import UserError
from ssa.evaluation import catalog
from ssa.evaluation.evaluate import evaluate
from ssa.evaluation.results import Result
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.settings import EvaluateSettings
from ssa.evaluation.task import Task
from ssa.evaluation.tasks.passkey import first_number
from ssa.model.config import ModelConfig
from ssa.model.rotary import inverse_frequencies
from ssa.model.transformer import Transformer
from ssa.statistics import wilson
from ssa.text.corpus import SPLITS, open_corpus
from ssa.text.sources.passkey import FILLER, KEY_SENTENCE, PassKeyPrompts, PassKeys, PassKeyText
from ssa.text.tokenization import END_OF_TEXT, Tokenizer, load_tokenizer, train_bpe
from ssa.viz import plot_style

# Texts


def passkey_data(**fields: Any) -> DataConfig:
    return data_config("passkey", **{"max_documents": 3000, **fields})


@functools.cache
def tokenizer() -> Tokenizer:
    texts = PassKeys(passkey_data()).documents("train")
    return Tokenizer("bpe-512", train_bpe(texts, 512))


def count(text: str) -> int:
    """Number of tokens, with the prefix token."""
    return 1 + len(tokenizer().encode_batch([text])[0])


def test_text() -> None:
    text = PassKeyText("58213", FILLER[:3], 1)
    before, *after = FILLER[:3]
    key = KEY_SENTENCE.format(key="58213")
    assert text.prompt.split(". ")[0] == "A pass key is hidden in the text below"
    assert " ".join((before, key, *after)) in text.prompt
    assert text.whole == f"{text.prompt}{text.answer}."
    assert text.prompt.endswith("The pass key is")
    assert text.answer == " 58213"


def test_texts_depend_on_split_and_index_only() -> None:
    few, many = PassKeys(passkey_data(max_documents=20)), PassKeys(passkey_data())
    for split in SPLITS:
        texts = list(many.documents(split))
        assert texts == list(many.documents(split))
        assert texts[7] == many.text(split, 7).whole
    assert list(few.documents("train")) == list(many.documents("train"))[:20]


def test_splits_are_independent() -> None:
    source = PassKeys(passkey_data(validation_fraction=0.2))
    keys = {split: [source.text(split, number).key for number in range(500)] for split in SPLITS}
    prompts = PassKeyPrompts(count)
    keys["evaluation"] = [prompts.text(96, 0.5, f"0 {trial}").key for trial in range(500)]
    for one in keys:
        for other in keys:
            same = sum(a == b for a, b in zip(keys[one], keys[other], strict=True))
            assert same == 500 if one == other else same <= 1  # 500 / 90,000 agree by chance
    assert len({text for split in SPLITS for text in source.documents(split)}) > 0.99 * (3000 + 2 * 600)


def test_keys_and_positions_are_uniform() -> None:
    source = PassKeys(passkey_data(max_documents=20_000))
    texts = [source.text("train", number) for number in range(20_000)]
    keys = torch.tensor([int(text.key) for text in texts])
    assert keys.min() >= 10_000
    assert keys.max() <= 99_999
    for values, bins in (
        (keys // 10_000 - 1, 9),
        (keys % 10, 10),
        (torch.tensor([text.place for text in texts if len(text.filler) == 9]), 10),
        (torch.tensor([FILLER.index(text.filler[0]) for text in texts if text.filler]), len(FILLER)),
    ):
        counts = torch.bincount(values).double()
        assert len(counts) == bins
        expected = len(values) / bins
        assert ((counts - expected).square() / expected).sum() < bins + 5 * (2 * bins) ** 0.5  # chi squared


def test_lengths_are_log_uniform() -> None:
    source = PassKeys(passkey_data(passkey={"min_sentences": 1, "max_sentences": 15}))
    counts = [len(source.text("train", number).filler) for number in range(8000)]
    assert (min(counts), max(counts)) == (1, 15)
    octaves = torch.bincount(torch.tensor(counts).add(1).log2().floor().long())[1:4]  # 1 and 2, 3 to 6, 7 to 14
    assert octaves.tolist() == pytest.approx([8000 * math.log(2) / math.log(17 / 2)] * 3, rel=0.1)


def test_training_texts_fit_in_a_block() -> None:
    for block_size in (128, 256, 1024):
        texts = list(PassKeys(passkey_data(block_size=block_size)).documents("train"))
        longest = max(map(len, tokenizer().encode_batch(texts)))
        assert 0.75 * block_size < longest <= block_size


def test_corpus_follows_settings() -> None:
    default = open_corpus(passkey_data())
    splits = {split: list(default.documents(split)) for split in SPLITS}
    assert {split: len(texts) for split, texts in splits.items()} == {"train": 3000, "validation": 60, "test": 60}
    others = [
        passkey_data(max_documents=2999),
        passkey_data(validation_fraction=0.05),
        passkey_data(block_size=128),
        passkey_data(passkey={"min_sentences": 1, "max_sentences": None}),
        passkey_data(passkey={"min_sentences": 0, "max_sentences": 5}),
    ]
    assert len({corpus.fingerprint for corpus in [default, *map(open_corpus, others)]}) == 1 + len(others)
    longest = max(PassKeys(others[-1]).documents("train"), key=len)
    assert sum(longest.count(sentence) for sentence in FILLER) == 5


def test_keys_consist_of_frequent_tokens() -> None:
    """Copying is learnable with the default tokenizer, as no token has more than two digits."""
    data = passkey_data(max_documents=10_000)
    trained = load_tokenizer(data, open_corpus(data))
    for ids in trained.encode_batch([f" {key}" for key in range(10_000, 100_000, 97)]):
        assert len(ids) <= 5
        assert all(len(trained.decode([token]).strip()) <= 2 for token in ids)


# Prompts of a given length


@pytest.mark.parametrize("length", [64, 65, 66, 67, 96, 100, 255, 256, 700])
def test_lengths_are_exact(length: int) -> None:
    prompts = PassKeyPrompts(count)
    for trial in range(5):
        text = prompts.text(length, 0.3, str(trial))
        assert count(text.prompt + text.answer) == length


def test_length_includes_prefix_and_answer() -> None:
    text = PassKeyPrompts(count).text(128, 0.5, "0")
    prompt, answer = tokenizer().encode_batch([text.prompt, text.answer])
    assert tokenizer().encode_batch([text.prompt + text.answer])[0] == prompt + answer


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_depth_is_the_position_in_the_filler(depth: float) -> None:
    text = PassKeyPrompts(count).text(512, depth, "0")
    assert text.place == round(depth * len(text.filler))
    before, after = text.prompt.split(KEY_SENTENCE.format(key=text.key))
    assert sum(before.count(sentence) for sentence in FILLER) == text.place
    assert sum(after.count(sentence) for sentence in FILLER) == len(text.filler) - text.place


def test_shortest_prompt_has_no_filler() -> None:
    prompts = PassKeyPrompts(count)
    text = prompts.text(prompts.shortest, 0.5, "0")
    assert text.filler == ()
    assert count(text.prompt + text.answer) <= prompts.shortest
    assert len(prompts.text(prompts.shortest + max(map(count, FILLER)), 0.5, "0").filler) > 0


def test_lengths_with_a_word_marking_tokenizer() -> None:
    inner = HubTokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[END_OF_TEXT], show_progress=False)
    inner.train_from_iterator(PassKeys(passkey_data()).documents("train"), trainer)
    marking = Tokenizer("metaspace", inner.to_str())

    def tokens(text: str) -> int:
        return 1 + len(marking.encode_batch([text])[0])

    for length in (150, 301, 512):
        text = PassKeyPrompts(tokens).text(length, 0.5, "0")
        assert length - 3 <= tokens(text.prompt + text.answer) <= length


# Config


def test_run_id_of_other_data_is_unchanged() -> None:
    for option in ("pydocs", "wikitext", "openwebtext"):
        config = configured(f"data={option}")
        before = config.plain()
        del before["data"]["passkey"]  # as in configs from before data=passkey
        assert "passkey" not in config.identity()["data"]
        assert parse(before) == config
        assert parse(before).run_id == config.run_id


def test_passkey_settings_change_the_run_id() -> None:
    configs = [configured("data=passkey"), configured("data=passkey", "data.passkey.max_sentences=3")]
    assert configs[0].identity()["data"]["passkey"] == {"min_sentences": 0, "max_sentences": None}
    assert configs[0].run_id != configs[1].run_id


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.passkey.min_sentences=-1"], ["data.passkey.min_sentences=-1:", "valid: >= 0"]),
        (["data.passkey.max_sentences=few"], ["data.passkey.max_sentences=few:", "a whole number"]),
        (
            ["data.passkey.min_sentences=4", "data.passkey.max_sentences=3"],
            ["data.passkey.max_sentences=3:", "valid: at least data.passkey.min_sentences=4"],
        ),
        (["data.passkey=null"], ["data.passkey", "data=passkey"]),
        (["+data.passkey.depth=1"], ["data.passkey.depth: unknown key", "valid: min_sentences, max_sentences"]),
    ],
    ids=str,
)
def test_invalid_settings(overrides: list[str], expected: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        configured("data=passkey", *overrides)
    assert [part for part in expected if part not in str(refused.value)] == [], str(refused.value)


def test_passkey_settings_need_passkey_data() -> None:
    with pytest.raises(UserError, match=r"^data\.passkey\.max_sentences: the chosen data= has no such setting"):
        configured("data=pydocs", "data.passkey.max_sentences=3")
    with pytest.raises(UserError, match=r"data\.passkey.*data=passkey"):
        configured("data=pydocs", "+data.passkey={min_sentences: 0, max_sentences: 1}")


# The task, on models with weights set by hand

CODE, BACK, ROTARY = 64, 5, 64  # features of a token's code; matched tokens; rotated features per head


def copier(vocabulary: int, near: float = 0.0) -> Transformer:
    """Find the previous occurrence of the last five tokens and predict the token that followed.

    Each token has a random code of +-1 and a constant.  Head m of layer 1 attends m + 1 tokens back, by rotation only,
    and copies that token's code.  Layer 2 compares the codes of a query's token and the 4 before it with those of the 5
    before each key, and copies the key's code to the input of the output matrix; ``near`` favors near keys.
    """
    wide = CODE * (BACK + 2) + 1
    head_dim = ROTARY + CODE * BACK
    config = ModelConfig(
        name="copier",
        size="test",
        n_layer=2,
        n_head=BACK,
        head_dim=head_dim,
        d_model=wide,
        vocab_size=vocabulary,
        max_positions=128,
        positions="rotary",
        rotary_fraction=ROTARY / head_dim,
        norm="rms",
        tie_embeddings=False,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        d_ff=8,
    )
    model = Transformer(config)
    codes = torch.randint(0, 2, (vocabulary, CODE), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    own, said, constant = slice(0, CODE), slice(wide - 1 - CODE, wide - 1), wide - 1
    back = [slice(CODE * (m + 1), CODE * (m + 2)) for m in range(BACK)]
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    state["token_embedding.weight"][:, own] = codes
    state["token_embedding.weight"][:, constant] = 1
    state["head.weight"][:, said] = codes
    state["final_norm.weight"][:] = 1
    first, second = "blocks.0.attention", "blocks.1.attention"
    for number, filled in ((0, CODE + 1), (1, CODE * (BACK + 1) + 1)):
        state[f"blocks.{number}.attention_norm.weight"][:] = (filled / wide) ** 0.5  # cancels the norm
    query, key, value = state[f"{first}.qkv.weight"].view(3, BACK, head_dim, wide)
    out = state[f"{first}.out.weight"].view(wide, BACK, head_dim)
    angles = inverse_frequencies(config)
    identity, half = torch.eye(CODE), ROTARY // 2
    for m in range(BACK):
        query[m, :half, constant] = 500 * torch.cos((m + 1) * angles)
        query[m, half:ROTARY, constant] = -500 * torch.sin((m + 1) * angles)
        key[m, :half, constant] = 1
        value[m, :CODE, own] = identity
        out[back[m], m, :CODE] = identity
    query, key, value = state[f"{second}.qkv.weight"].view(3, BACK, head_dim, wide)
    query[0, :half, constant] = near
    key[0, :half, constant] = 1
    for m in range(BACK):
        compared = slice(ROTARY + CODE * m, ROTARY + CODE * (m + 1))
        query[0, compared, own if m == 0 else back[m - 1]] = 10 * identity
        key[0, compared, back[m]] = identity
    value[0, :CODE, own] = identity
    state[f"{second}.out.weight"].view(wide, BACK, head_dim)[said, 0, :CODE] = identity
    model.load_state_dict(state)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A pretrained model that copies."""
    return write(copier(tokenizer().vocab_size), tmp_path / "model")


def write(model: Transformer, folder: Path) -> Path:
    described = {"model_type": "ssa", "vocab_size": tokenizer().vocab_size}
    described["ssa"] = model.config.plain()
    write_files(folder, described, {f"model.{name}": tensor for name, tensor in model.state_dict().items()})
    (folder / "tokenizer.json").write_text(tokenizer().definition, encoding="utf-8")
    return folder


def evaluated(folder: Path, **settings: Any) -> Result:
    """Evaluate on the CPU; outcomes go to the folder too."""
    fixed = {"init_from": str(folder), "tasks": ["passkey"], "device": "cpu", "output_dir": str(folder / "outputs")}
    return evaluate(EvaluateSettings(**fixed, **settings))["passkey"]


def task(folder: Path, lengths: list[int] | None = None, context: int | None = None) -> Task:
    evaluated = EvaluatedModel(init_from=str(folder), device="cpu", context=context)
    return catalog.task("passkey", EvaluateSettings(init_from=str(folder), lengths=lengths), evaluated)


@pytest.mark.slow
def test_copying_model_finds_the_key(folder: Path) -> None:
    result = evaluated(folder, trials=2)
    assert result["metrics"]["accuracy"]["value"] > 0.95
    lengths = [int(name.split("/")[1]) for name in result["metrics"] if name.split("/")[-1].isdigit()]
    assert lengths[0] < 128
    assert lengths[-1] == 256  # beyond the training length
    assert result["n"] == 2 * 5 * len(lengths)


@pytest.mark.slow
def test_random_model_does_not_find_the_key(folder: Path) -> None:
    write(Transformer(copier(tokenizer().vocab_size).config, seed=3), folder)
    accuracy = evaluated(folder, lengths=[64], depths=[0.0, 1.0], trials=20)["metrics"]["accuracy"]
    assert accuracy["value"] <= 0.05
    assert (accuracy["low"], accuracy["high"]) == wilson(round(40 * accuracy["value"]), 40)


def test_accuracy_by_length_depth_and_cell(folder: Path) -> None:
    write(copier(tokenizer().vocab_size, near=125), folder)
    result = evaluated(folder, lengths=[64, 160], depths=[0.0, 0.5, 1.0], trials=3)
    cells = result["details"]["cells"]
    assert [(cell["length"], cell["depth"]) for cell in cells] == [(n, d) for n in (64, 160) for d in (0.0, 0.5, 1.0)]
    for cell in cells:
        assert (cell["low"], cell["high"]) == wilson(cell["successes"], cell["n"])
        assert cell["accuracy"] == cell["successes"] / cell["n"]
    for length in (64, 160):
        hits = sum(cell["successes"] for cell in cells if cell["length"] == length)
        assert result["metrics"][f"accuracy/{length}"]["value"] == pytest.approx(hits / 9)
    assert {cell["successes"] for cell in cells} >= {0, 3}
    for row in result["details"]["depths"]:
        assert row["successes"] == sum(cell["successes"] for cell in cells if cell["depth"] == row["depth"])


def test_same_settings_reuse_the_outcome(folder: Path) -> None:
    details = [evaluated(folder, lengths=[64], trials=2, rerun=True)["details"] for _ in range(2)]
    assert details[0] == details[1]


@pytest.mark.parametrize(("lengths", "context"), [([20, 64], None), (None, 20)])
def test_refuses_lengths_too_short_for_a_key(lengths: list[int] | None, context: int | None, folder: Path) -> None:
    shortest = PassKeyPrompts(count).shortest
    with pytest.raises(UserError, match=rf"lengths=20: too short for a passkey; valid: at least {shortest}"):
        task(folder, lengths, context)


def write_learned(folder: Path, max_positions: int) -> None:
    fields = {"name": "learned", "size": "test", "n_layer": 1, "n_head": 1, "d_model": 8}
    vocabulary = {"vocab_size": tokenizer().vocab_size, "tie_embeddings": False}
    write(Transformer(ModelConfig(**fields, **vocabulary, max_positions=max_positions)), folder)


def test_learned_positions_limit_lengths(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_learned(folder, 128)
    with pytest.raises(UserError, match=r"lengths=129.*valid: up to 128"):
        task(folder, [64, 129])
    assert max(task(folder).settings["lengths"]) == 128
    assert "passkey: lengths=192,256 left out: beyond the model's 128 learned positions" in capsys.readouterr().out
    assert "accuracy/128" in evaluated(folder, trials=5)["metrics"], "prompt, answer and a sixth digit fit"
    write_learned(folder, PassKeyPrompts(count).shortest)
    with pytest.raises(UserError, match=r"tasks=passkey: the model's \d+ positions are too few for a passkey"):
        task(folder)


def test_heat_map_needs_matplotlib(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(folder, lengths=[64], trials=1)
    images = {path for path in folder.rglob("outputs/**/passkey.*") if path.suffix != ".json"}
    assert {path.suffix for path in images} == {".png", ".svg", ".pdf"}
    for path in images:
        path.unlink()
    monkeypatch.setattr(plot_style, "available", lambda: False)
    evaluated(folder, lengths=[64], trials=1, rerun=True)
    assert not any(path.exists() for path in images)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "heat map" in line]
    assert plot_style.INSTALL in line


@pytest.mark.parametrize(
    ("text", "number"), [(" 58213", "58213"), ("58213. What", "58213"), (" 582134", "582134"), (" five", ""), ("", "")]
)
def test_first_number(text: str, number: str) -> None:
    assert first_number(text) == number
