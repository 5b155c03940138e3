from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from random import Random

import programs
import psutil
import pytest
from data_configs import data_config
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from ssa.config import DataConfig
from ssa.errors import UserError
from ssa.text import tokenization
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


def test_bpe_of_a_long_word_is_that_of_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = Random(0).choices("ACGT", k=200_000)
    word = "".join(letters)
    lines = ["".join(letters[start : start + 1000]) for start in range(0, len(letters), 1000)]
    assert train_bpe([word], 400) == train_bpe(lines, 400)
    short = train_bpe([TEXT, *lines], 400)
    monkeypatch.setattr(tokenization, "_LONGEST_WORD", 10**6)
    assert train_bpe([TEXT, *lines], 400) == short  # words up to that length are whole


def test_bpe_of_much_text_is_trained_in_a_worker(
    data: DataConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenization, "_TRAINED_HERE", 100_000)
    text = "".join(Random(0).choices(["the ", "dog ", "sleeps. ", "\n\n"], k=60_000))
    Path(str(data.train)).write_text(text)
    assert load(data).definition == OurTokenizer("t", train_bpe(open_corpus(data).documents("train"), 280)).definition
    assert capsys.readouterr().out == "training the tokenizer bpe-280, once for this text; can be interrupted\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_ends_the_training_of_a_tokenizer(tmp_path: Path) -> None:
    letters = bytes(b"ACGT"[value % 4] for value in range(256))
    (tmp_path / "letters.txt").write_bytes(Random(0).randbytes(16_000_000).translate(letters))
    command = ["scale=smoke", "logger=none", "data=text", "data.train=letters.txt", "data.tokenizer=bpe-20000"]
    with programs.start("train.py", *command, "data.cache_dir=cache", cwd=tmp_path) as train:
        process = psutil.Process(train.pid)
        starter = process.parent()
        before = starter.cpu_times().children_user
        family: list[psutil.Process] = []
        while all(child.cpu_times().user < 1 for child in family):  # until the library is at work
            assert train.code is None, train.printed
            time.sleep(0.05)
            family = process.children(recursive=True)
        train.send(signal.SIGINT)
        assert train.ended() == 130
        assert "training the tokenizer" in train.out
        assert "Traceback" not in train.printed
    assert not psutil.wait_procs(family, timeout=60)[1]
    spent = starter.cpu_times().children_user - before
    assert spent < 25, "seconds of processor time: the library alone takes 40 to the end"


def test_a_file_that_exists_is_the_tokenizer(data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("bpe [1].json", "bpe.of.mine"):
        (tmp_path / name).write_text(word_level("<unk>", "</s>", "a").to_str())
        assert load(data.model_copy(update={"tokenizer": name})).vocab_size == 3


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


def test_dropout_of_a_file_is_switched_off(tmp_path: Path, data: DataConfig) -> None:
    plain = load(data)
    definition = json.loads(plain.definition)
    definition["model"]["dropout"] = 0.9
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    tokenizer = load(data.model_copy(update={"tokenizer": str(tmp_path / "tokenizer.json")}))
    assert tokenizer.hash == plain.hash
    (ids,) = plain.encode_batch([TEXT])
    for _ in range(3):
        assert tokenizer.encode_batch([TEXT]) == [ids]
        assert tokenizer.encode_as_published(TEXT) == ids


def test_loss_of_text(data: DataConfig) -> None:
    assert load(data).loss_of_text([*STRANGE, TEXT]) is None
    tokenizer = OurTokenizer("t", word_level("<unk>", "</s>", "a", "b").to_str())
    lossless, lossy = ["a b", "a"], ["a b c", "a  b"]
    assert tokenizer.loss_of_text(lossless) is None
    assert tokenizer.loss_of_text([*lossless, *lossy]) == (
        "the tokenizer loses text: 2 of 4 sampled documents differ after decoding, 12.5% of their tokens are unknown; "
        "bits/byte and word perplexity are left out"
    )


def test_unknown_tokens_of_a_unigram_model() -> None:
    inner = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", -1.0), ("a", -2.0)], unk_id=0))
    found = OurTokenizer("t", inner.to_str()).loss_of_text(["a", "aba"])
    assert "1 of 2 sampled documents differ after decoding, 25.0% of" in str(found)


def test_composed_characters_and_a_leading_space_are_no_loss(data: DataConfig) -> None:
    inner = Tokenizer.from_str(load(data).definition)
    inner.normalizer = normalizers.NFC()
    assert OurTokenizer("t", inner.to_str()).loss_of_text(["cafe\N{COMBINING ACUTE ACCENT}"]) is None
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer = OurTokenizer("t", inner.to_str())
    assert tokenizer.decode(tokenizer.encode_batch(["a"])[0]) == " a"
    assert tokenizer.loss_of_text(["a", " a"]) is None
    inner.normalizer = normalizers.Lowercase()
    assert "1 of 1" in str(OurTokenizer("t", inner.to_str()).loss_of_text(["Cafe"]))


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
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "t.json: a Git LFS pointer, not the"),
        (b"", "not a tokenizer.json"),
        (word_level("<unk>", "a").to_str().encode(), "has no end-of-text token; valid: <.endoftext.> </s>"),
        (b"[" * 20_000, "not a tokenizer.json"),
        (
            word_level("</s>", "a").to_str().replace('"a":1', '"a":4294967295').encode(),
            "the token a has the id 4294967295; valid: below 16777216",
        ),
    ],
)
def test_bad_tokenizer_files(data: DataConfig, tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "t.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"data\.tokenizer=.*t\.json: {message}"):
        load(data.model_copy(update={"tokenizer": str(path)}))


PANICS = {
    "a normalizer without its table": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a normalizer with another table": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8AAAAA"}
    },
    "pieces of no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a slow pattern": {
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    },
    "a prefix of nothing": {"model": {"type": "BPE", "continuing_subword_prefix": "####", "merges": [["a", "b"]]}},
    "a token twice": {"model": {"type": "BPE", "vocab": {"</s>": 0, "a": 1, "b": 1, "ab": 1}, "merges": [["a", "b"]]}},
    "a template of unknown tokens": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
}


@pytest.mark.parametrize("fault", PANICS)
def test_a_tokenizer_that_panics(fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    definition = json.loads(word_level("</s>", "a", "b", "ab").to_str())
    for key, value in PANICS[fault].items():
        definition[key] = {**definition[key], **value} if key == "model" else value
    with pytest.raises(UserError, match=r"^data\.tokenizer=t: not a (tokenizer.json|working tokenizer) \("):
        OurTokenizer("t", json.dumps(definition))
    assert capfd.readouterr().err == ""


def test_a_text_that_a_tokenizer_cannot_encode() -> None:
    inner = Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="gone"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = OurTokenizer("t", inner.to_str())
    assert tokenizer.encode_batch(["a a"]) == [[1, 1]]
    for encode in (lambda text: tokenizer.encode_batch([text]), tokenizer.encode_as_published):
        with pytest.raises(UserError, match=r"^data\.tokenizer=t: cannot encode this text \(.*Missing \[UNK\] token"):
            encode("b")


def test_the_id_of_a_token(data: DataConfig) -> None:
    tokenizer = load(data)
    assert tokenizer.token_id("<|endoftext|>") == tokenizer.end_of_text
    assert tokenizer.token_id("no such token") is tokenizer.token_id("\ud83c") is None
