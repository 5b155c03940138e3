from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import programs
import psutil
import pytest
from data_configs import data_config
from tokenizers import Tokenizer, models, pre_tokenizers

from ssa.config import DataConfig
from ssa.errors import UserError
from ssa.files import read_checked, write_checked
from ssa.text import token_build
from ssa.text.corpus import SPLITS, Corpus, open_corpus
from ssa.text.token_cache import TokenizedCorpus, prepare

DOCUMENTS = [f"Document {i}: naïve text of {'some ' * (i % 7)}words, {i * i} in all.\n" for i in range(400)]
CHUNK = 2_000  # characters, so that there are some ten chunks


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    return data_config("text", train=path, tokenizer="bpe-300", cache_dir=tmp_path / "cache", workers=1)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_build, "CHUNK", CHUNK)


def changed(data: DataConfig, **fields: Any) -> DataConfig:
    return DataConfig.model_validate({**data.model_dump(), **fields})


def folder_of(data: DataConfig) -> Path:
    (folder,) = [path for path in Path(str(data.cache_dir), "tokens").iterdir() if path.is_dir()]
    return folder


def tokens_of(corpus: TokenizedCorpus) -> dict[str, list[int]]:
    return {split: corpus.split(split).tokens.tolist() for split in SPLITS}


def expected_tokens(data: DataConfig, corpus: TokenizedCorpus) -> dict[str, list[int]]:
    """A reference implementation."""
    streams = {}
    for split in SPLITS:
        streams[split] = [corpus.tokenizer.end_of_text]
        for ids in corpus.tokenizer.encode_batch(list(open_corpus(data).documents(split))):
            streams[split] += [*ids, corpus.tokenizer.end_of_text]
    return streams


# What is in it


@pytest.mark.usefixtures("small_chunks")
def test_splits_are_documents_between_ends_of_text(data: DataConfig) -> None:
    corpus = prepare(data)
    assert tokens_of(corpus) == expected_tokens(data, corpus)
    for name in SPLITS:
        split, texts = corpus.split(name), list(open_corpus(data).documents(name))
        assert isinstance(split.tokens, np.memmap)
        assert split.tokens.dtype == np.uint16
        assert split.n_documents == len(texts)
        assert split.n_words == sum(len(text.split()) for text in texts)
        assert split.n_bytes == sum(len(text.encode()) for text in texts)
        assert split.n_tokens == len(split.tokens)


def test_manifest(data: DataConfig) -> None:
    corpus = prepare(data)
    manifest = read_checked(folder_of(data) / "manifest.json")
    assert manifest is not None
    assert manifest["key"] == corpus.fingerprint
    assert manifest["tokenizer"] == {"name": "bpe-300", "hash": corpus.tokenizer.hash}
    assert manifest["dtype"] == "uint16"
    assert set(manifest["splits"]["train"]) == {"tokens", "documents", "words", "bytes", "sha256"}
    assert manifest["splits"]["test"]["tokens"] == corpus.split("test").n_tokens
    assert sorted(path.name for path in folder_of(data).glob("*.bin")) == ["test.bin", "train.bin", "validation.bin"]


def test_large_vocabularies_take_four_bytes(tmp_path: Path, data: DataConfig) -> None:
    words = {"<unk>": 0, "</s>": 70_000, **{f"w{i}": i for i in range(1, 70_000)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.save(str(tmp_path / "large.json"))
    for split in SPLITS:
        (tmp_path / f"{split}.txt").write_text(f"w69999 {split}")
    files = {split: str(tmp_path / f"{split}.txt") for split in SPLITS}
    corpus = prepare(changed(data, **files, tokenizer=str(tmp_path / "large.json")))
    assert corpus.split("train").tokens.dtype == np.uint32
    assert corpus.split("train").tokens.tolist() == [70_000, 69_999, 0, 70_000]


def test_prefix_counts_its_own_text(data: DataConfig) -> None:
    corpus = prepare(data)
    split = corpus.split("train")
    texts = list(open_corpus(data).documents("train"))
    lengths = [len(ids) + 1 for ids in corpus.tokenizer.encode_batch(texts[:3])]
    three = split.prefix(1 + sum(lengths))
    assert (three.n_documents, three.n_tokens) == (3, 1 + sum(lengths))
    assert three.n_words == sum(len(text.split()) for text in texts[:3])
    assert three.n_bytes == sum(len(text.encode()) for text in texts[:3])
    assert split.prefix(split.n_tokens) is split.prefix(10**9) is split
    nearly = split.prefix(split.n_tokens - 1)  # all but the last end-of-text
    assert (nearly.n_documents, nearly.n_words, nearly.n_bytes) == (split.n_documents, split.n_words, split.n_bytes)
    with pytest.raises(UserError, match=r"data\.max_eval_tokens=1: valid: at least 2"):
        split.prefix(1)


def test_prefix_may_end_inside_a_character(data: DataConfig) -> None:
    corpus = prepare(changed(data, tokenizer="bpe-257"))  # a token a byte
    prefix = corpus.split("train").prefix(1 + len("Document 0: na") + 1)
    assert (prefix.n_documents, prefix.n_bytes) == (1, len("Document 0: na"))


def test_check_block_size(data: DataConfig) -> None:
    corpus = prepare(data)
    n = corpus.split("train").n_tokens
    corpus.check_block_size(n - 1)
    with pytest.raises(UserError, match=f"the train split has {n} tokens, a block needs {n + 1}; add text"):
        corpus.check_block_size(n)


def test_a_split_without_text(tmp_path: Path, data: DataConfig) -> None:
    (tmp_path / "blank.jsonl").write_text('{"text": " "}\n{"text": null}\n')
    with pytest.raises(UserError, match=r"data\.validation: no text in the validation split"):
        prepare(changed(data, validation=str(tmp_path / "blank.jsonl")))
    assert not [path for path in Path(str(data.cache_dir), "tokens").iterdir() if path.suffix == ""]


# When it is used again


def test_a_second_run_uses_the_cache(data: DataConfig, capsys: pytest.CaptureFixture[str]) -> None:
    first = prepare(data)
    assert "tokenizing into" in capsys.readouterr().out
    again = prepare(changed(data, workers=2, block_size=8, name="renamed", max_eval_tokens=9))
    assert capsys.readouterr().out == ""
    assert (again.fingerprint, tokens_of(again)) == (first.fingerprint, tokens_of(first))


def test_other_text_or_tokenizer_is_another_cache(tmp_path: Path, data: DataConfig) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(Path(str(data.train)).read_text().replace("some", "more"))
    settings = [
        {},
        {"tokenizer": "bpe-301"},
        {"validation_fraction": 0.05},
        {"max_documents": 399},
        {"train": str(other)},
    ]
    assert len({prepare(changed(data, **fields)).fingerprint for fields in settings}) == len(settings)


def truncate(folder: Path) -> None:
    os.truncate(folder / "train.bin", 1000)


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "validation.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "validation.bin").write_bytes(content)


def lose_a_file(folder: Path) -> None:
    (folder / "test.bin").unlink()


def damage_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"key": ')


def take_anothers_manifest(folder: Path) -> None:
    manifest = read_checked(folder / "manifest.json") or {}
    write_checked(folder / "manifest.json", {**manifest, "key": "0" * 64})


def change_a_count(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(re.sub(r'"words": \d+', '"words": 3', manifest.read_text()))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "train.bin is damaged"),
        (flip_a_bit, "validation.bin is damaged"),
        (lose_a_file, "test.bin is damaged"),
        (damage_the_manifest, "the manifest is damaged, or of an earlier version"),
        (change_a_count, "the manifest is damaged, or of an earlier version"),
        (take_anothers_manifest, "the manifest belongs to other data"),
    ],
)
def test_a_damaged_cache_is_rebuilt(
    data: DataConfig, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], reason: str
) -> None:
    first = tokens_of(prepare(data))
    damage(folder_of(data))
    capsys.readouterr()
    assert tokens_of(prepare(data)) == first
    assert f"{reason}; rebuilding" in capsys.readouterr().out
    prepare(data)
    assert capsys.readouterr().out == ""


def test_a_cache_that_cannot_be_written(data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*file.*set data\.cache_dir or SSA_CACHE_DIR"):
        prepare(changed(data, cache_dir=str(tmp_path / "file" / "cache")))


# How it is built


@pytest.mark.usefixtures("small_chunks")
def test_processes_give_the_same_tokens(data: DataConfig, tmp_path: Path) -> None:
    one = prepare(data)
    two = prepare(changed(data, workers=2, cache_dir=str(tmp_path / "second")))
    assert tokens_of(two) == tokens_of(one)
    assert two.split("train").n_words == one.split("train").n_words


@pytest.mark.usefixtures("small_chunks")
def test_documents_are_read_no_further_than_needed(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Corpus.documents
    read, done, ahead = [0], [0], []

    def counted(corpus: Corpus, split: str) -> Any:
        for text in plain(corpus, split):
            read[0] += len(text.encode())
            yield text

    def on_chunk(record: dict[str, Any]) -> None:
        ahead.append(read[0] - done[0])
        done[0] += record["bytes"]

    prepare(data)  # trains the tokenizer
    monkeypatch.setattr(Corpus, "documents", counted)
    truncate(folder_of(data))
    prepare(data, progress=on_chunk)
    assert len(ahead) > 8
    assert max(ahead) < 4 * 1.1 * CHUNK


BUILD = """
import sys
from ssa.text import token_build
from ssa.config import DataConfig
from ssa.text.token_cache import prepare
if __name__ == "__main__":
    token_build.CHUNK = int(sys.argv[2])
    prepare(DataConfig.model_validate_json(sys.argv[1]))
"""


def start_build(data: DataConfig, tmp_path: Path) -> programs.Process:
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    return programs.start(str(script), data.model_dump_json(), str(CHUNK), cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("small_chunks")
def test_a_killed_build_resumes(data: DataConfig, tmp_path: Path, workers: int) -> None:
    Path(str(data.train)).write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS * 40))
    tokens = Path(str(data.cache_dir), "tokens")
    with start_build(changed(data, workers=workers), tmp_path) as process:
        while not (chunks := list(tokens.glob("*.building/chunks/train-*.json"))):
            assert process.code is None, process.printed
            time.sleep(0.001)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send(signal.SIGKILL)
        assert process.ended() == -signal.SIGKILL, process.printed
    assert not [path for path in tokens.iterdir() if path.suffix == ""]
    assert psutil.wait_procs(family, timeout=10)[1] == []  # no process is left over
    kept = {path: path.stat().st_mtime_ns for path in chunks}
    seen = []
    corpus = prepare(data, progress=lambda record: seen.append({path: path.stat().st_mtime_ns for path in kept}))
    assert seen[0] == kept  # not tokenized again
    assert tokens_of(corpus) == expected_tokens(data, corpus)


@pytest.mark.parametrize("damaged", ["tokens", "counts"])
@pytest.mark.usefixtures("small_chunks")
def test_a_damaged_chunk_of_a_killed_build_is_rebuilt(data: DataConfig, tmp_path: Path, damaged: str) -> None:
    expected = prepare(changed(data, cache_dir=str(tmp_path / "other")))

    def stop(record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(data, progress=stop)
    (first, *_) = sorted(Path(str(data.cache_dir), "tokens").glob("*.building/chunks/train-*.bin"))
    if damaged == "tokens":
        first.write_bytes(bytes(first.stat().st_size))
    else:
        record = first.with_suffix(".json")
        record.write_text(re.sub(r'"words": \d+', '"words": 3', record.read_text()))
    found = prepare(data)
    assert tokens_of(found) == tokens_of(expected)
    assert found.split("train").n_words == expected.split("train").n_words


@pytest.mark.slow
def test_concurrent_processes_build_a_cache_once(data: DataConfig, tmp_path: Path) -> None:
    Path(str(data.train)).write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS * 20))
    processes = [start_build(data, tmp_path) for _ in range(2)]
    assert [process.ended() for process in processes] == [0, 0]
    said = "".join(process.out for process in processes)
    assert said.count("tokenizing into") == 1
    corpus = prepare(data)
    assert tokens_of(corpus) == expected_tokens(data, corpus)
