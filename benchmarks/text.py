"""Tokenizing and packing a text into the token cache, beside the tokenizers library alone on the same text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics

import tokenizers

from benchmarks.measure import Figure, interleaved, ratio, seconds
from benchmarks.settings import Settings
from ssa.files import write_atomic
from ssa.text.token_build import Chunk, tokenize_chunk
from ssa.text.tokenization import Tokenizer, train_bpe

MEGABYTES = 4
GOAL = "<= 1.5"


def figures(settings: Settings) -> list[Figure]:
    """Time of one process, and its ratio to ``encode_batch``."""
    texts = list(topics.values())
    texts *= round(MEGABYTES * 1e6 / sum(map(len, texts)))
    tokenizer = Tokenizer("bpe-2048", train_bpe(iter(texts[: len(topics)]), 2048))
    raw = tokenizers.Tokenizer.from_str(tokenizer.definition)
    with tempfile.TemporaryDirectory() as folder:
        cases: dict[str, Callable[[], object]] = {
            "token cache": _packed(Path(folder), texts, tokenizer),
            "encode_batch": lambda: raw.encode_batch(texts),
        }
        times = interleaved(cases, min(settings.rounds, 5), warmup=1)
    size = f"{MEGABYTES} MB"
    found = [seconds(f"{name}, {size}", values) for name, values in times.items()]
    return [*found, ratio(f"token cache / encode_batch, {size}", times["token cache"], times["encode_batch"], GOAL)]


def _packed(folder: Path, texts: list[str], tokenizer: Tokenizer) -> Callable[[], None]:
    numbers = iter(range(1000))  # a finished chunk is kept: each round writes another
    write_atomic(folder / "tokenizer.json", tokenizer.definition)

    def run() -> None:
        tokenize_chunk(Chunk(folder / str(next(numbers)), texts, tokenizer.name, tokenizer.definition))

    return run
