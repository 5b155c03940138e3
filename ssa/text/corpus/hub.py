"""A text set of the Hugging Face Hub, read straight from its Parquet files, one file and one row at a time."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Any

from ssa.config import DataConfig
from ssa.errors import UserError
from ssa.files import cache_root, hash_of
from ssa.hub_client import ask_or_recall, current_commit, download, faults_as_user_errors
from ssa.text.corpus import readers

PARQUET_BRANCH = "refs/convert/parquet"  # where the Hub keeps a Parquet copy of most sets
_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_ROWS_ARE_LINES = {"Salesforce/wikitext"}  # sets that have a row for each line of an article
_TITLE = re.compile(r" = [^=\s](.*[^=\s])? = \n")


@dataclasses.dataclass(frozen=True)
class Resolved:
    """What a repository id, a config and a revision stand for: a commit, and each split's Parquet files in order."""

    commit: str
    files: dict[str, list[str]]


class HubDataset:
    """The splits of ``data.path`` as `datasets` finds them.  Files are downloaded when their first row is asked for.

    Raises:
        UserError: no such set, config or revision; not Parquet; no network and never used before.
    """

    def __init__(self, data: DataConfig) -> None:
        assert data.path is not None, "DataConfig refuses source=hub without a path"
        self.repo = data.path
        self._config, self._column = data.config, data.text_column
        self.resolved = _resolve(data)
        self.splits = frozenset(self.resolved.files)

    @property
    def fingerprint(self) -> str:
        """Of the commit, not of the branch that led to it."""
        return hash_of(["hub", self.repo, self._config, self.resolved.commit, self._column])

    def documents(self, split: str) -> Iterator[str]:
        """Rows; of WikiText, whose rows are lines, articles."""
        rows = self._rows(split)
        return articles(rows) if self.repo in _ROWS_ARE_LINES else rows

    def _rows(self, split: str) -> Iterator[str]:
        for name in self.resolved.files[split]:
            yield from readers.documents(download(self.repo, name, "dataset", self.resolved.commit), self._column)


def articles(lines: Iterable[str]) -> Iterator[str]:
    """WikiText's articles as in its raw file: blank lines (empty rows) put back, each from its title line on.

    A title stands between blank lines; a line of an article may look like one, as " = 1 henry and capacitance C = ".
    """
    article: list[str] = []
    before = ""
    for line, after in pairwise(chain(lines, [""])):
        is_title = _TITLE.fullmatch(line) and not before.strip() and not after.strip()
        if is_title and "".join(article).strip():
            yield "".join(article)
            article = []
        article.append(line or " \n")
        before = line
    yield "".join(article)


def _resolve(data: DataConfig) -> Resolved:
    """Ask the Hub; what was found for the same commit is not looked for again."""
    asked = (data.path, data.config, data.revision)
    record = cache_root(data.cache_dir) / "hub" / f"{hash_of(asked)[:16]}.json"
    return Resolved(**ask_or_recall(record, str(data.path), functools.partial(_look_up, data)))


def _look_up(data: DataConfig, kept: dict[str, Any] | None) -> dict[str, Any]:
    if kept and kept["commit"] == data.revision:
        return kept
    commit = current_commit(str(data.path), data.revision)
    return kept if kept and kept["commit"] == commit else {"commit": commit, "files": _parquet_files(data, commit)}


def _parquet_files(data: DataConfig, commit: str) -> dict[str, list[str]]:
    """The files of each split of a config, found by the `datasets` library from the set's card or its file names."""
    import datasets

    repo = str(data.path)
    with faults_as_user_errors(repo, "dataset"):
        try:
            builder = datasets.load_dataset_builder(repo, name=data.config, revision=commit)
        except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise _not_loadable(data, error) from None
    prefix = f"hf://datasets/{repo}@{commit}/"
    listed = builder.config.data_files or {}
    files = {str(split): [str(url).removeprefix(prefix) for url in urls] for split, urls in listed.items()}
    others = sorted({name for names in files.values() for name in names if not name.endswith(".parquet")})
    if others or not files:
        held = f"holds {others[0]}" if others else "holds no data files"
        raise UserError(f"data.path={repo}: {held}, not Parquet; try its Parquet copy: data.revision={PARQUET_BRANCH}")
    return _by_our_names(repo, files)


def _by_our_names(repo: str, files: dict[str, list[str]]) -> dict[str, list[str]]:
    found = {split: files[name] for split, names in _NAMES.items() for name in [n for n in names if n in files][:1]}
    if "train" not in found:
        raise UserError(f"data.path={repo}: no split called train to learn from; it has: {', '.join(files)}")
    return found


def _not_loadable(data: DataConfig, error: Exception) -> UserError:
    reason = " ".join(str(error).split("Example of usage")[0].split())
    if "scripts are no longer supported" in reason:
        reason += f"; try its Parquet copy: data.revision={PARQUET_BRANCH}"
    return UserError(f"data.path={data.path} data.config={data.config}: {reason}")
