"""Tokenizers from the Hub, from a file, or trained on the training split."""

from __future__ import annotations

import functools
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from ssa.config import DataConfig
from ssa.config_errors import shown
from ssa.errors import UserError, first_line
from ssa.files import cache_root, expanded, hash_of, read_checked, refuse_lfs_pointer, write_checked
from ssa.hub_client import ask_or_cached, download
from ssa.processes import WorkerKilled, call_each
from ssa.text.corpus import Corpus

END_OF_TEXT = "<|endoftext|>"
_ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "<｜end▁of▁sentence｜>", "[EOS]", "[SEP]")
_SMALLEST, _LARGEST = 257, 200_000  # 256 bytes and end-of-text; a vocabulary of trainable size
_TRAINED_ON = 64_000_000  # characters at the start of the training split
_SAMPLED_TEXTS, _SAMPLE = 16, 4_000  # documents to check that decoding restores text, and characters of each
_LONGEST_WORD = 1000  # bytes; longer words are split in training, whose time grows with the square of their length
_TRAINED_HERE = 2_500_000  # characters; training on more text can take over ten seconds
_LARGEST_ID = 1 << 24
_PROBE = "a" * 50 + "! The 2nd  word:\n\tnaïve, 日本 🎉 it's\x00"
_VALID = "valid: bpe-N (trained on the training split), a Hub id such as gpt2, a tokenizer.json, a folder with one"


class Tokenizer:
    """Text to token ids and back, without special tokens, truncation and dropout; no text encodes to end-of-text.

    Raises:
        UserError: not a tokenizer, or it has no end-of-text token.
    """

    def __init__(self, name: str, definition: str) -> None:
        import tokenizers

        self.name = name  # as in data.tokenizer
        with _quiet(), self._refused("not a tokenizer.json"):
            inner = tokenizers.Tokenizer.from_str(definition)
        vocabulary: dict[str, int] = inner.get_vocab(with_added_tokens=True)
        end = next((token for token in _ENDS if token in vocabulary), None)
        if end is None:
            raise UserError(f"data.tokenizer={name}: has no end-of-text token; valid: {' '.join(_ENDS)}")
        largest = max(vocabulary, key=vocabulary.__getitem__)
        if vocabulary[largest] >= _LARGEST_ID:
            raise UserError(
                f"data.tokenizer={name}: the token {shown(largest)} has the id {vocabulary[largest]}; "
                f"valid: below {_LARGEST_ID}, since an embedding has a row for each"
            )
        inner.no_truncation()
        inner.no_padding()
        if getattr(inner.model, "dropout", None):  # of BPE: each encoding would skip random merges
            inner.model.dropout = None
        inner.add_special_tokens([end])
        inner.encode_special_tokens = True  # "<|endoftext|>" inside a text becomes ordinary tokens
        self._inner = inner
        self.end_of_text = vocabulary[end]  # the id between documents
        self.vocab_size = vocabulary[largest] + 1  # as an embedding needs
        with _quiet(), self._refused("not a working tokenizer"):
            if len(set(vocabulary.values())) < len(vocabulary):
                tokenizers.Tokenizer.from_str(self.definition)  # fails where an id was lost
            with suppress(Exception):  # text that it has no tokens for is not at fault
                inner.decode(inner.encode(_PROBE, add_special_tokens=False).ids)
                inner.encode(_PROBE)

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the definition."""
        return hash_of([json.loads(self.definition)])

    @property
    def definition(self) -> str:
        """The content of tokenizer.json."""
        return str(self._inner.to_str())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text.

        Raises:
            UserError: the tokenizer cannot encode a text, such as for lack of a token for unknown words.
        """
        with self._refused("cannot encode this text"):
            return [encoding.ids for encoding in self._inner.encode_batch_fast(texts, add_special_tokens=False)]

    def encode_as_published(self, text: str, begin: bool = True) -> list[int]:
        """The ids of a text as in other tools: special tokens in the text are parsed as such.

        ``begin`` adds the special tokens of the tokenizer's template, such as a leading ``<s>``.
        """
        with self._refused("cannot encode this text"):
            ids: list[int] = self._published.encode(text, add_special_tokens=begin).ids
        return ids

    @functools.cached_property
    def _published(self) -> Any:
        import tokenizers

        return tokenizers.Tokenizer.from_str(self.definition)  # the definition lacks `encode_special_tokens`

    def loss_of_text(self, texts: Iterable[str]) -> str | None:
        """How decoding differs from the start of the texts, for a message; None if it does not.

        A normalization to NFC and a leading space, which many tokenizers add, are no loss.
        """
        sample = [text[:_SAMPLE] for text in islice(texts, _SAMPLED_TEXTS)]
        encoded = self.encode_batch(sample)
        changed = sum(
            _comparable(self.decode(ids)) != _comparable(text) for ids, text in zip(encoded, sample, strict=True)
        )
        if not changed:
            return None
        model = json.loads(self.definition)["model"]
        unknown = model["unk_id"] if "unk_id" in model else self.token_id(model.get("unk_token") or "")
        tokens = [token for ids in encoded for token in ids]
        share = sum(token == unknown for token in tokens) / max(1, len(tokens))
        return (
            f"the tokenizer loses text: {changed} of {len(sample)} sampled documents differ after decoding, "
            f"{share:.1%} of their tokens are unknown; bits/byte and word perplexity are left out"
        )

    def token_id(self, token: str) -> int | None:
        """The id of a vocabulary entry."""
        with suppress(UnicodeEncodeError):  # half a surrogate pair is in no vocabulary
            found: int | None = self._inner.token_to_id(token)
            return found
        return None

    def decode(self, ids: Sequence[int], specials: bool = True) -> str:
        """The text of ids, with or without special tokens."""
        with self._refused("cannot decode its tokens"):
            return str(self._inner.decode(ids, skip_special_tokens=not specials))

    @contextmanager
    def _refused(self, fault: str) -> Iterator[None]:
        """Turn an error of the library, which raises plain Exception and panics, into a `UserError`."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise UserError(f"data.tokenizer={self.name}: {fault} ({first_line(error)})") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the library prints when it panics."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def load_tokenizer(data: DataConfig, corpus: Corpus) -> Tokenizer:
    """The tokenizer of ``data.tokenizer``; one that is trained on the corpus is cached.

    Raises:
        UserError: no such tokenizer, not available, or without an end-of-text token.
    """
    name = data.tokenizer
    entries = trained_entries(name)
    if entries is None:
        return published_tokenizer(name, data.cache_dir)
    key = hash_of(["bpe", entries, _TRAINED_ON, _LONGEST_WORD, corpus.fingerprint])
    path = cache_root(data.cache_dir) / "tokenizers" / f"{name}-{key[:16]}.json"
    kept = read_checked(path)
    if kept is None:
        if path.exists():
            print(f"{path}: damaged; retraining the tokenizer", flush=True)
        texts = list(_first(corpus.documents("train"), _TRAINED_ON))
        takes_seconds = sum(map(len, texts)) > _TRAINED_HERE
        kept = {"definition": _train_in_worker(name, texts, entries) if takes_seconds else train_bpe(texts, entries)}
        write_checked(path, kept)
    return Tokenizer(name, kept["definition"])


def trained_entries(name: str) -> int | None:
    """N if ``name`` is ``bpe-N``, a tokenizer to train; None if it is a published one.

    Raises:
        UserError: N is not a number, or out of range.
    """
    match = re.fullmatch(r"bpe-(\d{1,9})", name, re.ASCII)
    if not match and (not name.startswith("bpe") or "/" in name or expanded(name).exists()):
        return None
    if not match or not _SMALLEST <= int(match[1]) <= _LARGEST:
        raise UserError(f"data.tokenizer={name}: bpe-N needs N from {_SMALLEST} to {_LARGEST}, e.g. bpe-4096; {_VALID}")
    return int(match[1])


def published_tokenizer(name: str, cache_dir: str | None = None, field: str = "data.tokenizer") -> Tokenizer:
    """A tokenizer by the Hub id of its model, its tokenizer.json, or a folder with one.

    Raises:
        UserError: as `load_tokenizer`; ``field`` is the setting named in the message.
    """
    return Tokenizer(name, published_definition(name, cache_dir, field))


def published_definition(name: str, cache_dir: str | None = None, field: str = "data.tokenizer") -> str:
    """The content of the tokenizer.json of `published_tokenizer`."""
    definition = local_definition(name, field)
    if definition is not None:
        return definition

    def ask(_: dict[str, Any] | None) -> dict[str, Any]:
        return {"definition": _read(name, download(name, "tokenizer.json", "model"))}

    return str(ask_or_cached(_hub_record(name, cache_dir), name, ask)["definition"])


def _hub_record(name: str, cache_dir: str | None) -> Path:
    """The file that keeps the definition of a tokenizer of the Hub."""
    return cache_root(cache_dir) / "tokenizers" / f"hub-{hash_of([name])[:16]}.json"


def known_vocabulary(name: str, cache_dir: str | None = None) -> int | None:
    """The number of entries of a published tokenizer that is on this machine; the Hub is not asked.

    Raises:
        UserError: the file that ``name`` means is missing or damaged.
    """
    definition = local_definition(name) or (read_checked(_hub_record(name, cache_dir)) or {}).get("definition")
    return Tokenizer(name, definition).vocab_size if definition else None


def local_definition(name: str, field: str = "data.tokenizer") -> str | None:
    """The content of the tokenizer.json that ``name`` means; None if it means an id of the Hub, or ``bpe-N``.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    path = expanded(name)
    if path.is_dir():
        path = path / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{field}={name}: the folder has no tokenizer.json; {_VALID}")
    if path.suffix == ".json" or path.is_file():
        return _read(name, path, field)
    if name.startswith((".", "/", "~")):
        raise UserError(f"{field}={name}: no such folder or file; {_VALID}")
    return None


def train_bpe(texts: Iterable[str], entries: int) -> str:
    """A byte-level BPE as in GPT-2, as the content of a tokenizer.json; fewer entries if there is little text.

    Every byte is an entry, so that any text can be encoded.  Training is deterministic.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.FixedLength(_LONGEST_WORD)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = words
    return str(tokenizer.to_str())


def _comparable(text: str) -> str:
    return unicodedata.normalize("NFC", text).removeprefix(" ")


def _train_in_worker(name: str, texts: list[str], entries: int) -> str:
    """`train_bpe` in another process, since Ctrl-C does not interrupt the library."""
    print(f"training the tokenizer {name}, once for this text; can be interrupted", flush=True)
    try:
        ((_, definition),) = call_each(_train_on_all_cores, [(texts, entries)], jobs=1, preload=__name__, isolated=True)
    except WorkerKilled:
        raise UserError(f"data.tokenizer={name}: its training was killed, most often for lack of memory") from None
    return str(definition)


def _train_on_all_cores(texts: list[str], entries: int) -> str:
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # `call_each` turns it off
    return train_bpe(texts, entries)


def _read(name: str, path: Path, field: str = "data.tokenizer") -> str:
    refuse_lfs_pointer(path, f"{field}={name}: {path.name}")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{field}={name}: cannot be read ({reason}); {_VALID}") from None


def _first(texts: Iterator[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return
