"""Evaluation corpora."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ssa.errors import UserError, first_line
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.settings import EvaluateSettings
from ssa.files import cache_root, hash_of, hash_of_file
from ssa.hub_client import hub_errors
from ssa.record.run_files import read_environment
from ssa.record.run_model import with_own_tokenizer
from ssa.text.sources import readers
from ssa.text.sources.local import find_files
from ssa.text.token_cache import TokenizedCorpus, TokenSplit, prepare
from ssa.text.tokenization import Tokenizer

WIKITEXT_ROWS = ("Salesforce/wikitext", "wikitext-2-raw-v1", "text")  # as the Hugging Face guide reads it
WIKITEXT_PAGES = ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "page")  # as lm-evaluation-harness does
_SPLITS = ("test", "validation")


@dataclass(frozen=True)
class EvaluationText:
    """A text, named as in ``text=``, as a list of documents."""

    name: str
    documents: list[str]
    loss_of_text: str | None  # see `Tokenizer.loss_of_text`
    split: TokenSplit | None = None  # the tokens, if the text is a split of a run

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of documents, words (split at white space) and UTF-8 bytes."""
        if self.split is not None:
            return {"documents": self.split.n_documents, "words": self.split.n_words, "bytes": self.split.n_bytes}
        words = sum(len(text.split()) for text in self.documents)
        return {"documents": len(self.documents), "words": words, "bytes": sum(len(t.encode()) for t in self.documents)}

    @property
    def hash(self) -> str:
        return hash_of([self.documents])[:16]

    def stream(self, tokenizer: Tokenizer) -> TokenSplit:
        """The token stream of training: end-of-text, then each document followed by end-of-text."""
        if self.split is not None:
            return self.split
        ids = [tokenizer.end_of_text]
        for encoded in tokenizer.encode_batch(self.documents):
            ids += [*encoded, tokenizer.end_of_text]
        counts = self.counts
        return TokenSplit(self.name, np.array(ids), counts["documents"], counts["words"], counts["bytes"], tokenizer)


def text_settings(settings: EvaluateSettings, evaluated: EvaluatedModel) -> dict[str, Any]:
    """The settings that determine the text, with defaults for the model, and a hash of its content."""
    name = settings.text or ("test" if evaluated.config else "wikitext")
    chosen: dict[str, Any] = {"text": name, "limit": settings.limit}
    if name == "wikitext":
        return chosen
    if name in _SPLITS:
        if evaluated.config is None:
            valid = "valid for a pretrained model: wikitext, or files, 'books/*.txt'"
            raise UserError(f"text={name}: a split of a run; {valid}")
        return {**chosen, "data_hash": _data_hash(evaluated)}
    content = hash_of([[hash_of_file(path, cache_root(None)) for path in find_files("text", name)]])
    return {**chosen, "text_column": settings.text_column, "data_hash": content}


def load_text(settings: EvaluateSettings, evaluated: EvaluatedModel, *, joined: bool = False) -> EvaluationText:
    """The first ``limit`` documents of the text; if ``joined``, as one document with blank lines between them."""
    chosen, limit = text_settings(settings, evaluated), settings.limit
    name, split, corpus = chosen["text"], None, None
    if name == "wikitext":
        found = hub_rows(*(WIKITEXT_ROWS if joined and limit is None else WIKITEXT_PAGES))
    elif name in _SPLITS:
        assert evaluated.config is not None, "checked by text_settings"
        corpus = run_corpus(evaluated)
        split = corpus.split(name).prefix(evaluated.config.data.max_eval_tokens)
        found = split.texts()
    else:
        found = _read_files(name, settings.text_column)
    documents = list(islice(found, limit))
    if not any(documents):
        raise UserError(f"text={name}: no text")
    # documents of a split are decoded, and show no loss
    loss_of_text = corpus.loss_of_text if corpus else evaluated.tokenizer.loss_of_text(documents)
    if joined:
        return EvaluationText(name, ["\n\n".join(documents)], loss_of_text)
    return EvaluationText(name, documents, loss_of_text, split if limit is None else None)


def hub_rows(repo: str, config: str, column: str) -> Iterator[str]:
    """A column of the test split of a Hub dataset."""
    import datasets

    datasets.disable_progress_bars()  # tasks have their own
    with hub_errors(repo, "dataset", field="text"):
        try:
            rows = datasets.load_dataset(repo, config, split="test")
        except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise UserError(f"text=wikitext: {repo} {config}: {first_line(error)}") from None
    return iter(rows[column])


def run_corpus(evaluated: EvaluatedModel) -> TokenizedCorpus:
    """Tokenized data of a run; refused if it has changed since training."""
    assert evaluated.config is not None, "not a run"
    corpus = prepare(with_own_tokenizer(evaluated.config.data, evaluated.folder))
    trained_on = _data_hash(evaluated)
    if trained_on not in (None, corpus.fingerprint):
        raise UserError(
            f"{evaluated.folder}: the data has changed since training ({trained_on}, now {corpus.fingerprint}): "
            "restore it, or evaluate on files, text='books/*.txt'"
        )
    return corpus


def _data_hash(evaluated: EvaluatedModel) -> str | None:
    return read_environment(evaluated.folder).get("data_hash")


def _read_files(pattern: str, column: str) -> Iterator[str]:
    for path in find_files("text", pattern):
        try:
            yield from (text for text in readers.documents(path, column) if text and not text.isspace())
        except UserError as error:  # names a setting of train.py
            raise UserError(str(error).removeprefix("data.")) from None
