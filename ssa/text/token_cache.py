"""Token cache: a corpus is tokenized once into memory-mapped files, whose checksums are verified when opened."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ssa.config import DataConfig
from ssa.errors import UserError
from ssa.files import cache_root, hash_of, hash_of_file, locked, read_checked, write_checked, writing_cache
from ssa.progress import ProgressBar, counted
from ssa.redaction import redacted
from ssa.text.corpus import SPLITS, Corpus, open_corpus
from ssa.text.token_build import OnChunk, build_split, token_dtype
from ssa.text.tokenization import Tokenizer, load_tokenizer

FORMAT = 1  # increment when the files, or the tokens of a given text, change
_MANIFEST = "manifest.json"
_COUNTED_AT_ONCE = 10_000_000  # tokens


@dataclass(frozen=True)
class TokenSplit:
    """One split as a token stream: end-of-text, then each document followed by end-of-text."""

    name: str
    tokens: npt.NDArray[Any]  # (n_tokens,), uint16 or uint32; all but the first are targets
    n_documents: int
    n_words: int  # separated by white space
    n_bytes: int  # in UTF-8
    tokenizer: Tokenizer
    lossless: bool = True  # whether the tokenizer restores the text, so that measures per word and byte are of it

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    def require(self, n_tokens: int) -> None:
        """Checks that the split is long enough.

        Raises:
            UserError: it has fewer tokens.
        """
        if self.n_tokens < n_tokens:
            raise UserError(
                f"data.{self.name}: the {self.name} split has {self.n_tokens} tokens, a block needs {n_tokens}; "
                "add text or reduce data.block_size"
            )

    def prefix(self, n_tokens: int) -> TokenSplit:
        """The first ``n_tokens`` (or all there are), with counts of their text only.

        Raises:
            UserError: fewer than two tokens, so that there is no target.
        """
        if n_tokens < 2:
            raise UserError(f"data.max_eval_tokens={n_tokens}: valid: at least 2, since the first token is no target")
        if n_tokens >= self.n_tokens:
            return self
        tokens = self.tokens[:n_tokens]
        texts = list(replace(self, tokens=tokens).texts())
        n_words = sum(len(text.split()) for text in texts)
        n_bytes = sum(len(text.encode()) for text in texts)
        return TokenSplit(self.name, tokens, len(texts), n_words, n_bytes, self.tokenizer, self.lossless)

    def token_counts(self, vocab_size: int) -> npt.NDArray[np.int64]:
        """Number of occurrences of each token, (vocab_size,)."""
        counts = np.zeros(vocab_size, np.int64)
        for start in range(0, self.n_tokens, _COUNTED_AT_ONCE):
            counts += np.bincount(self.tokens[start : start + _COUNTED_AT_ONCE], minlength=vocab_size)
        return counts

    def texts(self) -> Iterator[str]:
        """The text of each document; the last may be truncated, without the bytes of an incomplete character."""
        ends = np.flatnonzero(self.tokens == self.tokenizer.end_of_text)
        for start, end in zip(ends, [*ends[1:], self.n_tokens], strict=True):
            if end > start + 1:
                text = self.tokenizer.decode(self.tokens[start + 1 : end].tolist())
                yield text if end < self.n_tokens else text.rstrip("\N{REPLACEMENT CHARACTER}")


@dataclass(frozen=True)
class TokenizedCorpus:
    """The three splits of a corpus.  ``fingerprint`` is a hash of everything that determines their tokens."""

    fingerprint: str
    tokenizer: Tokenizer
    splits: dict[str, TokenSplit]
    loss_of_text: str | None = None  # see `Tokenizer.loss_of_text`
    notes: Sequence[str] = ()  # see `Corpus.notes`

    def split(self, name: str) -> TokenSplit:
        """``train``, ``validation`` or ``test``."""
        return self.splits[name]

    def check_block_size(self, block_size: int) -> None:
        """Checks that every split is long enough.

        Raises:
            UserError: the training split is shorter than a block, or another has no target.
        """
        for name, needed in (("train", block_size + 1), ("validation", 2), ("test", 2)):
            self.split(name).require(needed)


class CachedTokens(NamedTuple):
    """Tokens of the training split, and bytes of all splits on disk."""

    train: int
    bytes: int


def find_cached(data: DataConfig) -> CachedTokens | None:
    """The newest cache of a data config; None: there is none.  Neither text nor checksums are read."""
    settings = _recorded(data)
    manifests = (cache_root(data.cache_dir) / "tokens").glob(f"{data.source}-*/{_MANIFEST}")
    for path in sorted(manifests, key=lambda path: path.stat().st_mtime, reverse=True):
        manifest = read_checked(path)
        if manifest is not None and manifest.get("data") == settings:
            files = {split: path.with_name(f"{split}.bin") for split in SPLITS}
            sizes = {split: file.stat().st_size if file.is_file() else 0 for split, file in files.items()}
            return CachedTokens(sizes["train"] // np.dtype(manifest["dtype"]).itemsize, sum(sizes.values()))
    return None


def _recorded(data: DataConfig) -> dict[str, Any]:
    """The settings that determine the tokens, as a manifest records them for human readers."""
    of_runs = {"cache_dir", "workers", "block_size", "max_eval_tokens", "noise"}
    recorded: dict[str, Any] = redacted(data.model_dump(mode="json", exclude=of_runs))
    return recorded


def prepare(data: DataConfig, progress: OnChunk | None = None) -> TokenizedCorpus:
    """The tokens of a data config, from the cache or tokenized now.

    ``progress`` is called with the counts of each finished chunk; None: a progress bar.

    Raises:
        UserError: the text or the tokenizer is not available, or the cache cannot be written.
    """
    corpus = open_corpus(data)
    tokenizer = load_tokenizer(data, corpus)
    key = hash_of([FORMAT, corpus.fingerprint, tokenizer.hash])
    root = cache_root(data.cache_dir)
    folder = root / "tokens" / f"{data.source}-{key[:16]}"
    manifest = _read_manifest(folder, key, root)
    if isinstance(manifest, str):
        manifest = _build(data, corpus, tokenizer, folder, key, progress)
    splits, loss_of_text = {}, manifest["loss_of_text"]
    for name in SPLITS:
        tokens = np.memmap(folder / f"{name}.bin", dtype=token_dtype(tokenizer), mode="r")
        counts = manifest["splits"][name]
        splits[name] = TokenSplit(
            name, tokens, counts["documents"], counts["words"], counts["bytes"], tokenizer, not loss_of_text
        )
    return TokenizedCorpus(key, tokenizer, splits, loss_of_text, manifest.get("notes", ()))


def _read_manifest(folder: Path, key: str, root: Path) -> dict[str, Any] | str:
    """The manifest of an intact cache, else why it is unusable; an empty string if it does not exist."""
    if not folder.exists():
        return ""
    manifest = read_checked(folder / _MANIFEST)
    if manifest is None:
        return "the manifest is damaged, or of an earlier version"
    if manifest["key"] != key:
        return "the manifest belongs to other data"
    for name in SPLITS:
        path = folder / f"{name}.bin"
        if not path.is_file() or hash_of_file(path, root) != manifest["splits"][name]["sha256"]:
            return f"{path.name} is damaged"
    return manifest


def _build(
    data: DataConfig, corpus: Corpus, tokenizer: Tokenizer, folder: Path, key: str, progress: OnChunk | None
) -> dict[str, Any]:
    """Tokenizes into ``folder.building`` and renames it, so that ``folder`` is always complete."""
    building = folder.with_name(f"{folder.name}.building")
    root = cache_root(data.cache_dir)
    lock, waiting = folder.with_name(f"{folder.name}.lock"), f"{folder}: another process is building it; waiting"
    with writing_cache(building.parent), locked(lock, waiting=waiting):
        manifest = _read_manifest(folder, key, root)  # another process may have built it by now
        if not isinstance(manifest, str):
            return manifest
        if manifest:
            print(f"{folder}: {manifest}; rebuilding", flush=True)
            shutil.rmtree(folder)
        manifest = {"format": FORMAT, "key": key, "corpus": corpus.fingerprint, "dtype": str(token_dtype(tokenizer))}
        manifest |= redacted({"tokenizer": {"name": tokenizer.name, "hash": tokenizer.hash}})
        manifest["data"] = _recorded(data)
        manifest |= {"loss_of_text": tokenizer.loss_of_text(corpus.documents("train")), "notes": corpus.notes}
        print(f"tokenizing into {folder}, once for this text and tokenizer; can be interrupted", flush=True)
        manifest["splits"] = {}
        for split in SPLITS:
            with ProgressBar(f"tokenizing {split}:", unit="MB", transient=True) as bar:
                on_chunk = progress or _shown_on(bar)
                manifest["splits"][split] = build_split(corpus, split, tokenizer, building, data.workers, on_chunk)
        write_checked(building / _MANIFEST, manifest)
        shutil.rmtree(building / "chunks", ignore_errors=True)
        os.rename(building, folder)
    return manifest


def _shown_on(bar: ProgressBar) -> OnChunk:
    documents = 0

    def on_chunk(record: dict[str, Any]) -> None:
        nonlocal documents
        documents += record["documents"]
        megabytes = bar.completed + record["bytes"] / 1e6
        bar.update(megabytes, f"{counted(documents, 'documents')}, {megabytes:,.0f} MB")

    return on_chunk
