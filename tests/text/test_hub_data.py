"""Datasets and tokenizers of the Hugging Face Hub, through its real client.

A server that speaks the Hub's protocol is at HF_ENDPOINT.  Where SSA_HUB_SERVER names a program that starts one as
``PROGRAM --fail-first N --fail-status CODE --truncate-first N -- COMMAND``, faults are tried as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from data_configs import data_config

from ssa.command_line.compose import configured
from ssa.config import DataConfig
from ssa.errors import UserError
from ssa.pretrained.load import from_pretrained
from ssa.text.corpus import SPLITS, open_corpus
from ssa.text.token_cache import prepare
from ssa.text.tokenization import load_tokenizer

pytestmark = pytest.mark.hub

SERVER = os.environ.get("SSA_HUB_SERVER")
needs_server = pytest.mark.skipif(SERVER is None, reason="SSA_HUB_SERVER is not set")
WIKITEXT_TEST = (60, 241_211, 1_290_590)  # articles, words, bytes of the raw test file

PREPARE = """
import json, sys
from ssa.config import DataConfig
from ssa.errors import UserError
from ssa.text.token_cache import prepare
if __name__ == "__main__":
    try:
        corpus = prepare(DataConfig.model_validate_json(sys.argv[1]))
    except UserError as error:
        sys.exit(f"error: {error}")
    counts = [(s.n_tokens, s.n_documents, s.n_words, s.n_bytes) for s in corpus.splits.values()]
    print(json.dumps([corpus.fingerprint, counts]))
"""


class Machine:
    """A fresh machine with empty download and token caches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "prepare.py"
        self.script.write_text(PREPARE)
        self.data = data_config("wikitext", cache_dir=folder / "cache")

    def run(self, *faults: str, server: bool = True, **environment: str) -> tuple[int, str, Any]:
        """Exit code, output without the result, and the result."""
        launch = [sys.executable, str(SERVER), *faults, "--"] if server else []
        inherited = {name: value for name, value in os.environ.items() if name != "HF_ENDPOINT"}
        paths = {"PYTHONPATH": str(ROOT), "HF_HOME": str(self.folder / "hf")}
        done = subprocess.run(
            [*launch, sys.executable, str(self.script), self.data.model_dump_json()],
            env={**inherited, **paths, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        *rest, last = done.stdout.splitlines() or [""]
        return done.returncode, done.stderr + "\n".join(rest), json.loads(last) if done.returncode == 0 else None


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def counts(data: DataConfig, split: str) -> tuple[int, int, int]:
    texts = list(open_corpus(data).documents(split))
    return len(texts), sum(len(text.split()) for text in texts), sum(len(text.encode()) for text in texts)


# Text sets


@pytest.mark.parametrize("config", ["wikitext-103-raw-v1", "wikitext-2-raw-v1"])
def test_wikitext_is_its_raw_text_by_article(config: str) -> None:
    assert counts(data_config("wikitext", config=config), "test") == WIKITEXT_TEST
    first = next(iter(open_corpus(data_config("wikitext")).documents("test")))
    assert first.startswith(" \n = Robert Boulter = \n \n Robert Boulter is an English film")


def test_missing_splits_are_held_out() -> None:
    corpus = open_corpus(data_config("openwebtext"))
    texts = {split: list(corpus.documents(split)) for split in SPLITS}
    n = sum(map(len, texts.values()))
    assert all(0.015 * n < len(texts[split]) < 0.025 * n for split in ("validation", "test"))
    assert len({text for split in texts.values() for text in split}) == n


def test_prepared_wikitext_with_the_gpt2_tokenizer() -> None:
    corpus = prepare(data_config("wikitext"))
    test = corpus.split("test")
    assert (corpus.tokenizer.vocab_size, corpus.tokenizer.end_of_text) == (50257, 50256)
    assert (test.n_documents, test.n_words, test.n_bytes) == WIKITEXT_TEST
    assert (test.tokens == 50256).sum() == 61
    article = test.tokens[1 : list(test.tokens).index(50256, 1)]
    assert corpus.tokenizer.decode(article.tolist()) == next(
        iter(open_corpus(data_config("wikitext")).documents("test"))
    )


def downloaded_shards() -> set[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    shards = Path(HF_HUB_CACHE).glob("datasets--public-domain--classic-books/snapshots/*/train-*.parquet")
    return {path.name for path in shards}


def test_max_documents_downloads_only_what_it_reads() -> None:
    before = downloaded_shards()
    corpus = open_corpus(data_config("hub", path="public-domain/classic-books", max_documents=5))
    assert len(list(corpus.documents("train"))) == 5
    first = {"train-00000-of-00003.parquet"}
    assert first <= downloaded_shards() <= before | first


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "no/such-set"}, r"data\.path=no/such-set: the Hub has no such dataset"),
        ({"path": "wikitext-without-owner"}, r"data\.path=wikitext-without-owner: .*an id looks like ORG/NAME"),
        ({"path": "not an id"}, r"data\.path=not an id: not a Hub id"),
        ({"path": "Salesforce/wikitext", "revision": "nope"}, r"data\.revision: .* no such branch"),
        ({"path": "Salesforce/wikitext", "config": "nope"}, r"data\.config=nope: .*wikitext-103-raw-v1"),
        ({"path": "Salesforce/wikitext"}, r"data\.config=None: .*pick one.*wikitext-103-raw-v1"),
        ({"path": "EleutherAI/lambada_openai"}, "no split named train; it has: test"),
    ],
)
def test_bad_datasets(fields: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        open_corpus(data_config("hub", **fields))
    assert "\n" not in str(error.value)


def test_bad_column() -> None:
    data = data_config("openwebtext", text_column="texts")
    with pytest.raises(UserError, match=r"data\.text_column=texts: no such column.*did you mean text"):
        next(iter(open_corpus(data).documents("train")))


# Tokenizers


@pytest.mark.parametrize(
    ("name", "vocab_size"),
    [("gpt2", 50257), ("openai-community/gpt2", 50257), ("EleutherAI/pythia-160m", 50277)],
)
def test_tokenizers(name: str, vocab_size: int) -> None:
    data = data_config("pydocs", tokenizer=name)
    tokenizer = load_tokenizer(data, open_corpus(data))
    assert tokenizer.vocab_size == vocab_size
    text = "Some text:\n\n    indented <|endoftext|> 日本語"
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.end_of_text not in ids


@pytest.mark.parametrize("name", ["no/such-model", "Salesforce/wikitext"])
def test_bad_tokenizer_ids(name: str) -> None:
    data = data_config("pydocs", tokenizer=name)
    with pytest.raises(UserError, match=rf"data\.tokenizer={name}: the Hub has no such model"):
        load_tokenizer(data, open_corpus(data))


# Faults


@needs_server
@pytest.mark.parametrize(
    "faults", [["--fail-first", "2", "--fail-status", "429", "--truncate-first", "1"], ["--truncate-first", "5"]]
)
def test_errors_that_the_client_survives(machine: Machine, faults: list[str]) -> None:
    code, said, result = machine.run(*faults)
    assert code == 0, said
    assert tuple(result[1][2][1:]) == WIKITEXT_TEST


@needs_server
@pytest.mark.parametrize("n", [1, 2])
def test_a_refusal_is_one_line_and_the_next_run_is_right(machine: Machine, n: int) -> None:
    code, said, _ = machine.run("--fail-first", str(n))
    assert code == 1
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "503" in line
    assert "try again, or set HF_ENDPOINT" in line
    assert "Traceback" not in said
    code, said, result = machine.run()
    assert code == 0, said
    assert tuple(result[1][2][1:]) == WIKITEXT_TEST


@needs_server
def test_a_refusal_during_a_download_loses_nothing(machine: Machine) -> None:
    """The Hub refuses one file after another."""
    code, said, expected = machine.run()
    assert code == 0, said
    for split in (SPLITS[0], SPLITS[-1]):
        machine.data = machine.data.model_copy(update={"cache_dir": str(machine.folder / f"without-{split}")})
        (missing,) = machine.folder.glob(f"hf/hub/datasets--*/snapshots/*/wikitext-103-raw-v1/{split}-*")
        missing.resolve().unlink()
        missing.unlink()
        code, said, _ = machine.run("--fail-first", "1")
        assert code == 1
        assert "503" in said
        assert not [path for path in Path(str(machine.data.cache_dir), "tokens").glob("*") if path.suffix == ""]
        code, said, result = machine.run()
        assert (code, result) == (0, expected), said


@needs_server
def test_cached_data_needs_no_network(machine: Machine) -> None:
    _, _, expected = machine.run()
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        code, said, result = machine.run(server=False, **environment)
        assert (code, result) == (0, expected), said
        assert "Salesforce/wikitext: the Hub does not answer; using its last known answer" in said
    code, said, result = machine.run(server=False, HF_HUB_OFFLINE="1", HF_HOME=str(machine.folder / "empty"))
    assert (code, result) == (0, expected), said  # tokens alone are enough


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_no_network_and_nothing_cached(machine: Machine, environment: dict[str, str]) -> None:
    code, said, _ = machine.run(server=False, **environment)
    assert code == 1
    assert said.startswith("error: data.path=Salesforce/wikitext: cannot be fetched from the Hugging Face Hub")
    assert said.count("\n") == 1


def test_a_pretrained_model_is_described_by_the_hub_and_its_missing_weights_are_one_line() -> None:
    config = configured("model=ssa_pythia", "init_from=EleutherAI/pythia-410m")
    assert (config.model.n_layer, config.model.d_model, config.model.vocab_size) == (24, 1024, 50304)
    assert config.data.tokenizer == "EleutherAI/pythia-410m"
    with pytest.raises(UserError, match=r"init_from=openai-community/gpt2: no model\.safetensors"):
        from_pretrained("openai-community/gpt2")
