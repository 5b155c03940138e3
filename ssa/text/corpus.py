"""Corpora: documents of a source, divided into splits.

A source (`ssa.text.sources`) yields documents of the splits that it has; `Corpus` limits the training
split to ``max_documents`` and holds out missing splits from it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import count, groupby, islice
from typing import Protocol

from ssa.config import DataConfig
from ssa.files import hash_of
from ssa.text.sources import readers
from ssa.text.sources.hub import HubDataset
from ssa.text.sources.local import LocalFiles
from ssa.text.sources.passkey import PassKeys
from ssa.text.sources.pydocs import PyDocs, PySource

SPLITS = ("train", "validation", "test")
HELD_OUT = 10  # documents or passages of a held-out split, at least
SHORTEST = 1_000  # characters of a passage


class Source(Protocol):
    """Documents by split; ``splits`` contains ``train`` and may contain ``validation`` and ``test``."""

    splits: frozenset[str]

    @property
    def notes(self) -> Sequence[str]:
        """Notes for the user on the text, one line each."""

    @property
    def fingerprint(self) -> str:
        """A hash of the text."""

    def documents(self, split: str) -> Iterator[str]:
        """The documents of a split in `splits`, always in the same order."""


class Corpus:
    """Documents of train, validation and test, streamed in constant memory.

    Splits that the source lacks are held out of its train set by position: of every 1/``validation_fraction``
    documents one is validation and one is test.  Where that would hold out fewer than `HELD_OUT` documents a split,
    they are first cut into passages at blank lines, of a size that gives each split so many; passages are no shorter
    than `SHORTEST` unless a split would get fewer than four.  Neighboring passages of one split stay one document.
    """

    def __init__(
        self, source: Source, validation_fraction: float, max_documents: int | None, text_version: int = 2
    ) -> None:
        self._source = source
        self._max_documents = max_documents
        self._missing = frozenset(SPLITS) - source.splits
        self._period = round(1 / validation_fraction)
        self._version = text_version

    @property
    def fingerprint(self) -> str:
        """A hash of the text and of its division into splits."""
        period = self._period if self._missing else None
        passages = [HELD_OUT, SHORTEST] if self._version > 1 and self._missing else []
        return hash_of([self._source.fingerprint, sorted(self._missing), period, self._max_documents, *passages])

    @property
    def notes(self) -> list[str]:
        """Notes for the user on the text and its splits, one line each."""
        notes = [*self._source.notes]
        if self._missing and (size := self._passage_size):
            what = " and ".join(split for split in SPLITS if split in self._missing)
            notes.append(f"{what}: passages of about {size:,} characters, held out of few training documents")
        return notes

    def documents(self, split: str) -> Iterator[str]:
        """The documents of ``train``, ``validation`` or ``test`` that are not blank."""
        return (text for text in self._all_documents(split) if text.strip())

    def _all_documents(self, split: str) -> Iterator[str]:
        if split != "train" and split not in self._missing:
            return self._source.documents(split)
        if not self._missing:
            return self._train_source()
        if self._passage_size:
            return self._passages(split, self._passage_size)
        return (text for index, text in enumerate(self._train_source()) if self._owner(index) == split)

    def _train_source(self) -> Iterator[str]:
        return islice(self._source.documents("train"), self._max_documents)

    def _owner(self, index: int) -> str:
        position = index % self._period
        if position == self._period - 1 and "test" in self._missing:
            return "test"
        if position == self._period // 2 and "validation" in self._missing:
            return "validation"
        return "train"

    @functools.cached_property
    def _passage_size(self) -> int | None:
        """In characters; None if there are enough documents to hold out whole ones."""
        wanted = (HELD_OUT if self._version > 1 else 1) * self._period
        lengths = [len(text) for text in islice(self._train_source(), wanted)]
        largest = sum(lengths) // (4 * self._period)
        size = min(max(sum(lengths) // wanted, SHORTEST), largest) if self._version > 1 else largest
        return max(size, 1) if len(lengths) < wanted else None

    def _passages(self, split: str, size: int) -> Iterator[str]:
        owner = self._owner_of_passages(size)
        for text in self._train_source():
            for owned, neighbors in groupby(readers.cut([text], size), key=owner):
                if owned == split:
                    yield "".join(neighbors)

    def _owner_of_passages(self, size: int) -> Callable[[str], str]:
        """A function that assigns a passage to a split; it is called once for each passage, in order."""
        if self._version == 1:
            numbers = count()
            return lambda _: self._owner(next(numbers))
        due = {split: -size / 2 * place for place, split in enumerate(SPLITS[1:]) if split in self._missing}

        def owner(passage: str) -> str:
            """The split that is behind its share of characters: counts are biased if lengths follow a pattern."""
            for split in due:
                due[split] += len(passage) / self._period
            behind = next((split for split in due if due[split] >= size / 2), "train")
            if behind != "train":
                due[behind] -= len(passage)
            return behind

        return owner


def open_corpus(data: DataConfig) -> Corpus:
    """The corpus of a data config.

    Raises:
        UserError: no such text, or not available.
    """
    sources: dict[str, Callable[[DataConfig], Source]] = {
        "pydocs": lambda data: PyDocs(data.validation_fraction),
        "pysource": lambda data: PySource(data.validation_fraction),
        "hub": HubDataset,
        "text": LocalFiles,
        "passkey": PassKeys,
    }
    return Corpus(sources[data.source](data), data.validation_fraction, data.max_documents, data.text_version)
