"""Readers of files that may hold anything: each gives a value or one `UserError`, and leaves the file as it is.

Caches of ours heal themselves instead: their readers give what the whole file gave.
"""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest
import torch
from data_configs import data_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutate import mutate
from pretrained_folders import SSA, small, tensors_of, write_export, write_model
from record_formats import IN_RUNS, RECORDS
from safetensors.torch import save_file

from ssa.command_line.compose import configured
from ssa.config import Config
from ssa.errors import UserError
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.hub_client import HubUnreachable, ask_or_cached
from ssa.model.transformer import Transformer
from ssa.pretrained.base_files import base_files
from ssa.pretrained.load import from_pretrained
from ssa.record.checkpoint import read_best, save
from ssa.text.corpus import SPLITS
from ssa.text.token_cache import prepare
from ssa.text.tokenization import published_tokenizer, train_bpe

MUTATIONS = int(os.environ.get("SSA_MUTATIONS", "100"))  # of each file
SECONDS = 10  # for one reading
LONGEST_LINE = 2_000  # characters of an error
TEXT = "\n\n".join(f"Document {i}: a naïve text of {'some ' * (i % 7)}words, {i * i} in all." for i in range(60))
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|endoftext|>",
    "bos_token": {"content": "<|endoftext|>", "special": True},
    "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True}},
    "model_max_length": 64,
    "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
}


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        write: writes a whole file, and the files around it, into an empty folder, and returns its path.
        read: reads it, in the same folder; where it is a cache that heals, returns what can be compared.
        heals: whether it is a cache of ours.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    heals: bool = False


def model_folder(model_type: str, name: str) -> Callable[[Path], Path]:
    """A pretrained model with its tokenizer; ``name``: the file to be mutated."""

    def write(folder: Path) -> Path:
        if model_type == "ssa":
            write_export(folder, small("llama", SSA))
        else:
            write_model(folder, model_type)
        (folder / "tokenizer.json").write_text(train_bpe([TEXT], 300))
        (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
        (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.7, "eos_token_id": [0]}))
        return folder / name

    return write


def sharded(folder: Path) -> Path:
    """A pretrained model in two files and their index."""
    model_folder("gpt2", "")(folder)
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    parts = {name: f"part{number % 2}.safetensors" for number, name in enumerate(tensors)}
    for part in set(parts.values()):
        save_file({name: tensor for name, tensor in tensors.items() if parts[name] == part}, folder / part)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    return folder / "model.safetensors.index.json"


def pickled(folder: Path) -> Path:
    """A pretrained model in a pickle, which is never opened."""
    model_folder("gpt2", "")(folder)
    torch.save(tensors_of(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


def tokens(folder: Path) -> list[Any]:
    text = folder / "text.txt"
    if not text.exists():
        text.write_text(TEXT)
    corpus = prepare(data_config("text", train=text, tokenizer="bpe-280", cache_dir=folder / "cache", workers=1))
    splits = [corpus.split(name) for name in SPLITS]
    return [corpus.fingerprint, *([split.tokens.tolist(), split.n_words, split.n_bytes] for split in splits)]


def token_cache(pattern: str) -> Format:
    """A file of the cache of a tokenized corpus and its tokenizer."""

    def write(folder: Path) -> Path:
        tokens(folder)
        (path,) = (folder / "cache").glob(pattern)
        return path

    return Format(write, tokens, heals=True)


def answer_of_the_hub(folder: Path, fails: bool = True) -> dict[str, Any] | None:
    def ask(_: dict[str, Any] | None) -> dict[str, Any]:
        if fails:
            raise HubUnreachable("no answer")
        return {"commit": "c0ffee", "files": ["a.parquet"]}

    return ask_or_cached(folder / "answer.json", "org/data", ask)


def hub_cache(folder: Path) -> Path:
    answer_of_the_hub(folder, fails=False)
    return folder / "answer.json"


def heard(folder: Path) -> dict[str, Any] | None:
    return answer_of_the_hub(folder) == {"commit": "c0ffee", "files": ["a.parquet"]} or pytest.fail("another answer")


@functools.cache
def run_config() -> Config:
    options = ("scale=smoke", "data=text", "data.train=text.txt", "logger=none")
    return configured("model=ssa_gpt2", "model.vocab_size=300", *options)


def checkpoint(folder: Path) -> Path:
    config = run_config()
    model = Transformer(config.model, 300)
    save({"config": config.plain(), "model": model.state_dict(), "step": 3}, folder / "best.ckpt")
    return folder / "best.ckpt"


def use_tokenizer(folder: Path) -> None:
    tokenizer = published_tokenizer(str(folder))
    assert tokenizer.hash
    for text in (TEXT, "", "a" * 2_000):
        (ids,) = tokenizer.encode_batch([text])
        tokenizer.decode(ids)
        tokenizer.encode_as_published(text)
    tokenizer.loss_of_text([TEXT])


def use_special_tokens(folder: Path) -> None:
    model = EvaluatedModel(init_from=str(folder))
    assert {model.prefix, model.end} <= set(range(model.tokenizer.vocab_size))
    kept, _ = base_files(str(folder))
    json.dumps(kept, allow_nan=False).encode()


def load(folder: Path) -> Transformer:
    return from_pretrained(str(folder))


def refuse(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no model\.safetensors, .*pytorch_model\.bin and similar formats are not"):
        load(folder)


FORMATS = {
    **{f"config.json of {kind}": Format(model_folder(kind, "config.json"), load) for kind in ("gpt2", "gpt_neox")},
    **{f"config.json of {kind}": Format(model_folder(kind, "config.json"), load) for kind in ("llama", "ssa")},
    "tokenizer.json": Format(model_folder("llama", "tokenizer.json"), use_tokenizer),
    "tokenizer_config.json": Format(model_folder("llama", "tokenizer_config.json"), use_special_tokens),
    "generation_config.json": Format(model_folder("llama", "generation_config.json"), use_special_tokens),
    "model.safetensors": Format(model_folder("gpt2", "model.safetensors"), load),
    "model.safetensors.index.json": Format(sharded, load),
    "pytorch_model.bin": Format(pickled, refuse),
    "best.ckpt": Format(checkpoint, lambda folder: read_best(folder / "best.ckpt", run_config())),
    "manifest of a token cache": token_cache("tokens/*/manifest.json"),
    "tokens of a token cache": token_cache("tokens/*/train.bin"),
    "trained tokenizer": token_cache("tokenizers/*.json"),
    "answer of the Hub": Format(hub_cache, heard),
    **{name: Format(*how) for name, how in RECORDS.items()},
}


@contextmanager
def alarm() -> Iterator[None]:
    """Fail after `SECONDS`."""

    def late(signum: int, frame: FrameType | None) -> None:
        pytest.fail(f"no answer in {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def check(kind: Format, folder: Path, path: Path, content: bytes, whole: Any) -> None:
    """Read a file of this content; ``whole`` is what the whole file gave."""
    path.unlink(missing_ok=True)  # tensors may still be mapped from the last one
    path.write_bytes(content)
    before = sorted(folder.rglob("*"))
    try:
        with alarm():
            found = kind.read(folder)
    except UserError as error:
        found = error
    if kind.heals:
        assert found == whole
    else:
        assert path.read_bytes() == content
    assert not isinstance(found, UserError) or len(str(found)) < LONGEST_LINE
    assert sorted(folder.rglob("*")) == before


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name in IN_RUNS)) for name in FORMATS])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Format, Path, Path, Any]:
    """A kind of file, a folder with one, its path, and what it gives."""
    kind = FORMATS[request.param]
    path = kind.write(tmp_path)
    return kind, tmp_path, path, kind.read(tmp_path)


@pytest.mark.slow
def test_mutated_files(written: tuple[Format, Path, Path, Any], capfd: pytest.CaptureFixture[str]) -> None:
    kind, folder, path, whole = written
    content = path.read_bytes()
    for seed in range(MUTATIONS):
        try:
            check(kind, folder, path, mutate(content, seed), whole)
        except BaseException as error:
            raise AssertionError(f"mutation {seed} of {path.name}: {type(error).__name__}: {error}") from error
    assert capfd.readouterr().err == ""  # the library of tokenizers reports its panics there


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.sampled_from(["ssa", "model"]), inner),
    max_leaves=8,
)
some = settings(
    deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@some
@given(content=st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_file(written: tuple[Format, Path, Path, Any], content: bytes) -> None:
    kind, folder, path, whole = written
    check(kind, folder, path, content, whole)
