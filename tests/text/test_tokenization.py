from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_configs import data_config
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from ssa.config import DataConfig
from ssa.errors import UserError
from ssa.text.corpus import open_corpus
from ssa.text.tokenization import Tokenizer as OurTokenizer
from ssa.text.tokenization import load_tokenizer, train_bpe

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps. " * 50
STRANGE = ["", " ", "\n\n  x\t", "日本語 🎉 é", "\x00\x7f", "a<|endoftext|>b</s>", "don't  stop"]


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return data_config("text", train=path, tokenizer="bpe-280", cache_dir=tmp_path / "cache")


def load(data: DataConfig) -> OurTokenizer:
    return load_tokenizer(data, open_corpus(data))


def word_level(*words: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def test_bpe_round_trips_any_text(data: DataConfig) -> None:
    tokenizer = load(data)
    assert tokenizer.name == "bpe-280"
    assert tokenizer.vocab_size == 280
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch([*STRANGE, TEXT])] == [*STRANGE, TEXT]
    assert len(tokenizer.encode_batch([TEXT])[0]) < len(TEXT) / 1.8


def test_bpe_is_deterministic() -> None:
    assert train_bpe(iter([TEXT, "more"]), 300) == train_bpe(iter([TEXT, "more"]), 300)
    assert train_bpe(iter([TEXT]), 300) != train_bpe(iter([TEXT.upper()]), 300)


def test_bpe_of_little_text_has_fewer_entries() -> None:
    assert OurTokenizer("bpe-9000", train_bpe(iter(["abcabc"]), 9000)).vocab_size < 270


def test_no_text_becomes_end_of_text(data: DataConfig) -> None:
    tokenizer = load(data)
    (ids,) = tokenizer.encode_batch(["one<|endoftext|>two"])
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode([tokenizer.end_of_text]) == "<|endoftext|>"


def test_end_of_text_need_not_be_special_in_the_file(tmp_path: Path, data: DataConfig) -> None:
    inner = Tokenizer.from_str(load(data).definition)
    inner.add_tokens([AddedToken("</s>", special=False)])
    definition = json.loads(inner.to_str())
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["content"] == "</s>"]
    del definition["model"]["vocab"]["<|endoftext|>"]
    tokenizer = OurTokenizer("t", json.dumps(definition))
    assert tokenizer.decode([tokenizer.end_of_text]) == "</s>"
    assert tokenizer.end_of_text not in tokenizer.encode_batch(["one</s>two"])[0]


def test_truncation_padding_and_template_of_a_file_are_ignored(tmp_path: Path, data: DataConfig) -> None:
    inner = word_level("<unk>", "</s>", "a", "b")
    inner.add_special_tokens(["</s>"])
    inner.enable_truncation(2)
    inner.enable_padding(length=6)
    inner.post_processor = processors.TemplateProcessing("</s> $A", special_tokens=[("</s>", 1)])
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load(data.model_copy(update={"tokenizer": str(tmp_path / "tokenizer.json")}))
    assert tokenizer.encode_batch(["a b a", "b"]) == [[2, 3, 2], [3]]
    assert tokenizer.end_of_text == 1


def test_vocab_size_is_the_largest_id_and_one() -> None:
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 7, "a": 41}, unk_token="<unk>"))
    assert OurTokenizer("t", inner.to_str()).vocab_size == 42


def test_hash_follows_the_definition(data: DataConfig) -> None:
    one, other = word_level("<unk>", "</s>", "a"), word_level("<unk>", "</s>", "b")
    hashes = [OurTokenizer(name, inner.to_str()).hash for name, inner in [("x", one), ("y", one), ("x", other)]]
    assert hashes[0] == hashes[1] != hashes[2]


def test_trained_tokenizer_is_cached_and_retrained_when_damaged(
    data: DataConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    first = load(data).hash
    (kept,) = Path(str(data.cache_dir), "tokenizers").iterdir()
    written = kept.stat().st_mtime_ns
    assert load(data).hash == first
    assert kept.stat().st_mtime_ns == written
    assert capsys.readouterr().out == ""
    content = kept.read_text()
    for damage in (content.replace("quick", "quack").replace("the", "teh"), content[:-100], ""):
        assert damage != content
        kept.write_text(damage)
        assert load(data).hash == first
        assert "damaged; retraining the tokenizer" in capsys.readouterr().out
        assert kept.read_text() == content


@pytest.mark.parametrize("name", ["bpe-256", "bpe-0", "bpe-9999999", "bpe-", "bpe-x", "bpe", "bpe2048", "bpe_2048"])
def test_bpe_of_a_wrong_size(data: DataConfig, name: str) -> None:
    with pytest.raises(UserError, match=rf"data\.tokenizer={name}: bpe-N needs N from 257 to 200000.*valid: bpe-N"):
        load(data.model_copy(update={"tokenizer": name}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read .No such file"),
        (b"\xff", "cannot be read"),
        (b"{}", "not a tokenizer.json"),
        (b"", "not a tokenizer.json"),
        (word_level("<unk>", "a").to_str().encode(), "has no end-of-text token; valid: <.endoftext.> </s>"),
    ],
)
def test_bad_tokenizer_files(data: DataConfig, tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "t.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"data\.tokenizer=.*t\.json: {message}"):
        load(data.model_copy(update={"tokenizer": str(path)}))
