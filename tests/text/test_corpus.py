from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from data_configs import CONF, data_config
from omegaconf import OmegaConf

from ssa.config import DataConfig
from ssa.errors import UserError
from ssa.text.corpus import SPLITS, Corpus
from ssa.text.sources.hub import articles
from ssa.text.sources.pydocs import PyDocs, PySource


class Listed:
    """A source of given documents."""

    def __init__(self, train: list[str], **others: list[str]) -> None:
        self.by_split = {"train": train, **others}
        self.splits = frozenset(self.by_split)
        self.fingerprint = "listed"
        self.notes: list[str] = []

    def documents(self, split: str) -> Iterator[str]:
        return iter(self.by_split[split])


# Every option


def test_the_base_has_every_field_in_order() -> None:
    keys = list(OmegaConf.load(CONF / "_base.yaml"))
    assert keys == [key for key in DataConfig.model_fields if key != "passkey"]


@pytest.mark.parametrize("path", sorted(CONF.glob("[!_]*.yaml")), ids=lambda path: path.stem)
def test_options_are_complete_and_described(path: Path) -> None:
    needed = {"hub": {"path": "org/name"}, "text": {"train": "a.txt"}}.get(path.stem, {})
    data = data_config(path.stem, **needed)
    assert data.name == path.stem
    first, *lines = path.read_text().splitlines()
    assert first.startswith("# ")
    assert len(first) < 120
    assert lines[:2] == ["defaults: [_base, _self_]", ""]
    keys = [line.split(":")[0] for line in lines[2:] if not line.startswith(" ")]
    assert keys == [key for key in DataConfig.model_fields if key in keys]
    assert ("passkey" in keys) == (data.passkey is not None)
    assert data.source != "hub" or "/" in str(data.path)


# pydocs


@pytest.fixture(scope="module")
def python_docs() -> PyDocs:
    return PyDocs(validation_fraction=0.05)


@pytest.mark.slow
def test_pydocs_has_prose_in_every_split(python_docs: PyDocs) -> None:
    texts = {split: list(python_docs.documents(split)) for split in SPLITS}
    assert sum(map(len, texts["train"])) > 1_000_000
    assert all(sum(map(len, texts[split])) > 50_000 for split in ("validation", "test"))
    titles = [text.split("\n", 1)[0] for split in SPLITS for text in texts[split]]
    assert {"json.decoder", "argparse", "with"} <= set(titles)
    assert not [title for title in titles if title.startswith(("test.", "site-packages")) or ".test" in title]


@pytest.fixture
def stdlib(tmp_path: Path) -> Path:
    files = {
        "alpha.py": '"""Alpha speaks."""\nraise SystemExit("imported")\n',
        "beta.py": 'class B:\n    """Shared words."""\n    async def f(self, *a, k=1, **o):\n        """F of B."""\n',
        "gamma.py": 'try:\n    pass\nexcept OSError:\n    def g():\n        """Shared words."""\n',
        "latin.py": b'# -*- coding: latin-1 -*-\n"""Caf\xe9."""\n',
        "wrong_bytes.py": b'"""Caf\xe9."""\n',
        "no_python.py": "print 'two'\n",
        "nul.py": b"\0\0",
        "undocumented.py": "x = 1\n",
        "pydoc_data/topics.py": "topics = {'with': 'The with statement\\n   is long.', 'if': 'The if statement.'}\n",
        "pydoc_data/__init__.py": "",
        "test/test_alpha.py": '"""A test."""\n',
        "pack/tests/x.py": '"""A test."""\n',
        "site-packages/other.py": '"""Not of the library."""\n',
        "config-3.11/built.py": '"""Not a module."""\n',
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path


def test_pydocs_documents_are_parsed_not_imported(stdlib: Path) -> None:
    docs = PyDocs(validation_fraction=0.2, stdlib=stdlib)
    assert sorted(text for split in SPLITS for text in docs.documents(split)) == [
        "alpha\n\nAlpha speaks.\n",
        "beta\n\nclass B\n\nShared words.\n\nB.f(self, *a, k, **o)\n\nF of B.\n",
        "if\n\nThe if statement.\n",
        "latin\n\nCafé.\n",
        "with\n\nThe with statement\nis long.\n",
    ]


def test_pydocs_fingerprint_follows_the_sources(stdlib: Path) -> None:
    before = PyDocs(0.05, stdlib).fingerprint
    assert before == PyDocs(0.05, stdlib).fingerprint
    (stdlib / "alpha.py").write_text('"""Alpha is silent."""')
    assert PyDocs(0.05, stdlib).fingerprint != before


def test_pysource_is_the_modules_in_the_splits_of_pydocs(stdlib: Path) -> None:
    source, docs = (kind(validation_fraction=0.2, stdlib=stdlib) for kind in (PySource, PyDocs))
    texts = {split: list(source.documents(split)) for split in SPLITS}
    whole = [text for split in SPLITS for text in texts[split]]
    assert "x = 1\n" in whole
    assert len(whole) == 8, "neither topics, tests nor installed packages"
    assert {split for split in SPLITS if "x = 1\n" in texts[split]} == {source._split_of("undocumented")}
    assert source._split_of("alpha") == docs._split_of("alpha")
    assert source.fingerprint != docs.fingerprint


def test_pydocs_without_documentation(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data=pydocs: .* holds no text.*data=text"):
        PyDocs(0.05, tmp_path).documents("train")


# Held-out splits


@pytest.mark.parametrize("n", [500, 501, 2000])
def test_whole_documents_are_held_out_of_many(n: int) -> None:
    texts = [f"document {i}" for i in range(n)]
    corpus = Corpus(Listed(texts), validation_fraction=0.02, max_documents=None)
    splits = {split: list(corpus.documents(split)) for split in SPLITS}
    assert sorted(text for split in splits.values() for text in split) == sorted(texts)
    assert len(splits["test"]) == len(splits["validation"]) == n // 50
    assert splits == {split: list(corpus.documents(split)) for split in SPLITS}
    assert corpus.notes == []


def test_a_few_dozen_books_give_a_split_from_many_of_them() -> None:
    books = ["".join(f"Sentence {i} of book {n}.\n\n" for i in range(2_000)) for n in range(57)]
    corpus = Corpus(Listed(books), validation_fraction=0.02, max_documents=None)
    for split in ("validation", "test"):
        passages = list(corpus.documents(split))
        assert 10 <= len(passages) <= 20
        assert len({text.partition("of book ")[2].partition(".")[0] for text in passages}) > 5
        assert 0.01 < sum(map(len, passages)) / sum(map(len, books)) < 0.03
    assert re.fullmatch(r"validation and test: passages of about [\d,]+ characters, .*", *corpus.notes)
    given = Listed(books, validation=["v"], test=["t"])
    assert Corpus(given, validation_fraction=0.02, max_documents=None).notes == []


def test_passages_are_held_out_of_few() -> None:
    lines = [f"Line {i} of the book.\n" + "\n" * (i % 5 == 0) for i in range(3000)]
    book = "".join(lines)
    corpus = Corpus(Listed([book]), validation_fraction=0.05, max_documents=None)
    splits = {split: list(corpus.documents(split)) for split in SPLITS}
    kept = [
        line for split in splits.values() for text in split for line in text.splitlines(keepends=True) if line.strip()
    ]
    assert sorted(kept) == sorted(line.rstrip("\n") + "\n" for line in lines)
    for split in ("validation", "test"):
        assert 0.03 < sum(map(len, splits[split])) / len(book) < 0.07
        assert all(text in book for text in splits[split])
    assert len(splits["train"]) < 12  # neighbors stay together


def test_only_missing_splits_are_held_out() -> None:
    texts = [f"document {i}" for i in range(100)]
    corpus = Corpus(Listed(texts, test=["given"]), validation_fraction=0.1, max_documents=None)
    assert list(corpus.documents("test")) == ["given"]
    assert len(list(corpus.documents("validation"))) == 10
    assert len(list(corpus.documents("train"))) == 90


def test_max_documents_and_blank_documents() -> None:
    source = Listed(["a", " \n", "", "b", "c"], validation=["v", "w"], test=["t"])
    corpus = Corpus(source, validation_fraction=0.1, max_documents=4)
    assert list(corpus.documents("train")) == ["a", "b"]
    assert list(corpus.documents("validation")) == ["v", "w"]


def test_fingerprint_follows_what_decides_the_text() -> None:
    few, all_splits = Listed(["a"]), Listed(["a"], validation=["v"], test=["t"])
    prints = [Corpus(few, 0.1, None), Corpus(few, 0.05, None), Corpus(few, 0.1, 5), Corpus(all_splits, 0.1, None)]
    assert len({corpus.fingerprint for corpus in prints}) == 4
    assert Corpus(all_splits, 0.1, None).fingerprint == Corpus(all_splits, 0.05, None).fingerprint


# WikiText's rows


def test_wikitext_rows_become_articles() -> None:
    one = ["", " = One = \n", "", " Text .\n", " = C = \n", " = = Section = = \n", "", " = not = a title\n", ""]
    two = [" = Two = 2 = \n", "", " Text .\n"]
    first, second = articles([*one, *two])
    assert first == "".join(line or " \n" for line in one)
    assert second == " = Two = 2 = \n \n Text .\n"


@pytest.mark.parametrize("n", [60, 350, 450, 499])
def test_splits_have_their_share_of_documents_of_equal_length(n: int) -> None:
    texts = [f"{i:04} " + "word " * 2_000 + "\n\n" for i in range(n)]
    corpus = Corpus(Listed(texts), validation_fraction=0.02, max_documents=None)
    whole = sum(map(len, texts))
    for split in ("validation", "test"):
        held = list(corpus.documents(split))
        assert 0.015 < sum(map(len, held)) / whole < 0.025
        assert len(held) >= 5
    assert sum(len(text) for split in SPLITS for text in corpus.documents(split)) == whole
