"""Tokenization of a split in worker processes, in chunks, so that an interrupted build resumes.

This process reads documents, workers tokenize them: one core reads Parquet at 150 MB/s and tokenizes 1.5 MB/s.  Each
process holds one chunk of text in memory.  A chunk, or a split, is complete once its ``.json`` exists.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ssa.errors import UserError
from ssa.files import hash_of_bytes, hash_of_file, read_checked, replacing, write_atomic, write_checked
from ssa.processes import call_each
from ssa.text.corpus import Corpus
from ssa.text.tokenization import Tokenizer

CHUNK = 8_000_000  # characters of text per chunk
_BATCH = 500_000  # characters tokenized at once; bounds the memory of the tokenizer
Record: TypeAlias = dict[str, Any]  # counts and sha256 of a token file
OnChunk: TypeAlias = Callable[[Record], None]


@dataclass(frozen=True)
class Chunk:
    """Consecutive documents, and the output file (without suffix) for their tokens."""

    path: Path
    texts: list[str]
    tokenizer: str
    definition: str


def token_dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    """uint16 or uint32, the smallest that holds every id; always little-endian."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def build_split(
    corpus: Corpus, split: str, tokenizer: Tokenizer, folder: Path, workers: int, on_chunk: OnChunk
) -> Record:
    """Writes ``split.bin`` into ``folder``: end-of-text, then each document followed by end-of-text.

    Raises:
        UserError: the split has no text, a source cannot be read, or a worker was killed.
    """
    if done := _completed(folder / split):
        return done
    records = []
    chunks = ((chunk,) for chunk in _chunks(corpus, split, tokenizer, folder))
    for _, record in call_each(tokenize_chunk, chunks, jobs=workers, preload=__name__, setting="data.workers"):
        on_chunk(record)
        records.append(record)
    if not records:
        raise UserError(
            f"data.{split}: no text in the {split} split; add text, "
            "or if it is held out from the training split, raise data.validation_fraction"
        )
    start = np.array([tokenizer.end_of_text], dtype=token_dtype(tokenizer)).tobytes()
    paths = [_chunk_path(folder, split, number).with_suffix(".bin") for number in range(len(records))]
    digest = hashlib.sha256()
    with replacing(folder / f"{split}.bin") as partial, partial.open("wb") as stream:
        for content in chain([start], (path.read_bytes() for path in paths)):
            digest.update(content)
            stream.write(content)
    total = {name: sum(record[name] for record in records) for name in ("tokens", "documents", "words", "bytes")}
    total |= {"tokens": total["tokens"] + 1, "sha256": digest.hexdigest()}
    write_checked(folder / f"{split}.json", total)
    return total


def _chunks(corpus: Corpus, split: str, tokenizer: Tokenizer, folder: Path) -> Iterator[Chunk]:
    texts: list[str] = []
    size = number = 0
    for text in chain(corpus.documents(split), [None]):
        if text is not None:
            texts.append(text)
            size += len(text)
        if texts and (text is None or size >= CHUNK):
            yield Chunk(_chunk_path(folder, split, number), texts, tokenizer.name, tokenizer.definition)
            texts, size, number = [], 0, number + 1


def _chunk_path(folder: Path, split: str, number: int) -> Path:
    return folder / "chunks" / f"{split}-{number:06d}"


def tokenize_chunk(chunk: Chunk) -> Record:
    """Writes the tokens of a chunk, then its record, each atomically; a complete chunk is kept."""
    if done := _completed(chunk.path):
        return done
    tokens = np.concatenate(list(_encode(_tokenizer(chunk.tokenizer, chunk.definition), chunk.texts)))
    content = tokens.tobytes()
    chunk.path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(chunk.path.with_suffix(".bin"), content)
    record = {
        "tokens": len(tokens),
        "documents": len(chunk.texts),
        "words": sum(len(text.split()) for text in chunk.texts),
        "bytes": sum(len(text.encode()) for text in chunk.texts),
        "sha256": hash_of_bytes(content),
    }
    write_checked(chunk.path.with_suffix(".json"), record)
    return record


_tokenizer = functools.lru_cache(maxsize=1)(Tokenizer)


def _encode(tokenizer: Tokenizer, texts: list[str]) -> Iterator[np.ndarray[Any, Any]]:
    """The ids of each text, followed by end-of-text."""
    dtype = token_dtype(tokenizer)
    batch: list[str] = []
    for index, text in enumerate(texts):
        batch.append(text)
        if index == len(texts) - 1 or sum(map(len, batch)) >= _BATCH:
            for ids in tokenizer.encode_batch(batch):
                yield np.array([*ids, tokenizer.end_of_text], dtype=dtype)
            batch = []


def _completed(path: Path) -> Record | None:
    """The record of ``path.bin`` if the file is complete and unchanged."""
    record, content = read_checked(path.with_suffix(".json")), path.with_suffix(".bin")
    intact = record and content.is_file() and hash_of_file(content, path.parent) == record["sha256"]
    return record if intact else None
