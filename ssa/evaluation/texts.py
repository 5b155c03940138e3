"""The texts that perplexities are of."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ssa.errors import UserError
from ssa.evaluation.settings import EvaluateSettings
from ssa.evaluation.subject import Subject
from ssa.text.cache_files import hash_of
from ssa.text.token_cache import TokenSplit
from ssa.text.tokenization import Tokenizer

WIKITEXT_ROWS = ("Salesforce/wikitext", "wikitext-2-raw-v1", "text")  # as the Hugging Face guide reads it
WIKITEXT_PAGES = ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "page")  # as lm-evaluation-harness does


@dataclass(frozen=True)
class EvaluationText:
    """A text in documents.

    Attributes:
        name: as in ``text=``.
        documents: in order.
        joined: in one piece.
        split: its tokens, where a run has them.
    """

    name: str
    documents: list[str]
    joined: str
    split: TokenSplit | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Words are split at white space; bytes are UTF-8."""
        words = sum(len(text.split()) for text in self.documents)
        return {"documents": len(self.documents), "words": words, "bytes": sum(len(t.encode()) for t in self.documents)}

    @property
    def hash(self) -> str:
        """Of what it is."""
        return hash_of(self.documents)[:16]

    def stream(self, tokenizer: Tokenizer) -> TokenSplit:
        """As training reads it: end-of-text, then each document followed by end-of-text."""
        if self.split is not None:
            return self.split
        ids = [tokenizer.end_of_text]
        for encoded in tokenizer.encode_batch(self.documents):
            ids += [*encoded, tokenizer.end_of_text]
        counts = self.counts
        return TokenSplit(self.name, np.array(ids), counts["documents"], counts["words"], counts["bytes"], tokenizer)


def text_name(settings: EvaluateSettings, subject: Subject) -> str:
    """What ``text`` means for this model.

    Raises:
        UserError: a split of a run, of a model that is none.
    """
    name = settings.text or ("test" if subject.config else "wikitext")
    if name in ("test", "validation") and subject.config is None:
        raise UserError(f"text={name}: a split of a run; of a pretrained model: wikitext, or files, 'books/*.txt'")
    return name


def load_text(settings: EvaluateSettings, subject: Subject) -> EvaluationText:
    """The text, up to ``limit`` documents.

    Raises:
        UserError: it cannot be had.
    """
    name, limit = text_name(settings, subject), settings.limit
    if name == "wikitext":
        pages = list(islice(hub_rows(*WIKITEXT_PAGES), limit))
        rows = hub_rows(*WIKITEXT_ROWS)
        return EvaluationText(name, pages, "\n\n".join(rows if limit is None else pages))
    if name in ("test", "validation"):
        from ssa.run_model import with_own_tokenizer
        from ssa.text.token_cache import prepare

        assert subject.config is not None
        data = with_own_tokenizer(subject.config.data, subject.folder)
        split = prepare(data).split(name).prefix(data.max_eval_tokens)
        documents = list(islice(split.texts(), limit))
        return EvaluationText(name, documents, "\n\n".join(documents), split if limit is None else None)
    documents = list(islice(_of_files(name, settings.text_column), limit))
    if not documents:
        raise UserError(f"text={name}: has no text")
    return EvaluationText(name, documents, "\n\n".join(documents))


def hub_rows(repo: str, config: str, column: str) -> Iterator[str]:
    """A column of the test split of a dataset of the Hub.

    Raises:
        UserError: it cannot be had.
    """
    import datasets

    from ssa.text.hub_client import faults_as_user_errors

    datasets.disable_progress_bars()  # a task has its own
    with faults_as_user_errors(repo, "dataset", field="text"):
        rows = datasets.load_dataset(repo, config, split="test")
    return iter(rows[column])


def _of_files(pattern: str, column: str) -> Iterator[str]:
    from ssa.text.corpus import readers

    paths = [path for path in map(Path, sorted(glob.glob(str(Path(pattern).expanduser())))) if path.is_file()]
    if not paths:
        raise UserError(f"text={pattern}: matches no file; valid: test, validation, wikitext, or files, 'books/*.txt'")
    for path in paths:
        yield from (text for text in readers.documents(path, column) if text and not text.isspace())
