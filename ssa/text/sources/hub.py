"""Text datasets from the Hugging Face Hub, streamed from their Parquet files."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

from ssa.config import DataConfig
from ssa.errors import UserError
from ssa.files import cache_root, hash_of
from ssa.hub_client import ask_or_cached, current_commit, download, hub_errors
from ssa.text.sources import readers

PARQUET_BRANCH = "refs/convert/parquet"  # the Hub's Parquet copy of most datasets
_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_ROWS_ARE_LINES = {"Salesforce/wikitext"}  # datasets with one row per line of an article
_TITLE = re.compile(r" = [^=\s](.*[^=\s])? = \n")


class HubDataset:
    """The splits of ``data.path`` as found by `datasets`.  A file is downloaded when its first row is read.

    Raises:
        UserError: no such dataset, config or revision; not Parquet; no network and not in the cache.
    """

    def __init__(self, data: DataConfig) -> None:
        assert data.path is not None, "ensured by DataConfig"
        self.repo = data.path
        self._config, self._column = data.config, data.text_column
        record = cache_root(data.cache_dir) / "hub" / f"{hash_of((data.path, data.config, data.revision))[:16]}.json"
        resolved = ask_or_cached(record, data.path, functools.partial(_resolve, data))
        self._commit, self._files = resolved["commit"], resolved["files"]
        self.splits = frozenset(self._files)
        self.notes: Sequence[str] = ()

    @property
    def fingerprint(self) -> str:
        """Depends on the commit, not on the branch that resolves to it."""
        return hash_of(["hub", self.repo, self._config, self._commit, self._column])

    def documents(self, split: str) -> Iterator[str]:
        """One per row, except for WikiText, whose rows are lines of articles."""
        paths = (download(self.repo, name, "dataset", self._commit) for name in self._files[split])
        rows = chain.from_iterable(readers.documents(path, self._column) for path in paths)
        return articles(rows) if self.repo in _ROWS_ARE_LINES else rows


def articles(lines: Iterable[str]) -> Iterator[str]:
    """Articles of WikiText as in its raw file, with blank lines (empty rows) restored, each from its title line on.

    A title is surrounded by blank lines; other lines may look like one, such as " = 1 henry and capacitance C = ".
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


def _resolve(data: DataConfig, cached: dict[str, Any] | None) -> dict[str, Any]:
    """Commit and Parquet files by split, asked from the Hub; the files of a known commit come from the cache."""
    if cached and cached["commit"] == data.revision:
        return cached
    commit = current_commit(str(data.path), data.revision)
    if cached and cached["commit"] == commit:
        return cached
    return {"commit": commit, "files": _parquet_files(data, commit)}


def _parquet_files(data: DataConfig, commit: str) -> dict[str, list[str]]:
    """Files of each split, as found by `datasets` from the dataset card or the file names."""
    import datasets

    repo = str(data.path)
    with hub_errors(repo, "dataset"):
        try:
            builder = datasets.load_dataset_builder(repo, name=data.config, revision=commit)
        except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split("Example of usage")[0].split())
            if "scripts are no longer supported" in reason:
                reason += f"; try its Parquet copy: data.revision={PARQUET_BRANCH}"
            raise UserError(f"data.path={repo} data.config={data.config}: {reason}") from None
    prefix = f"hf://datasets/{repo}@{commit}/"
    listed = builder.config.data_files or {}
    files = {str(split): [str(url).removeprefix(prefix) for url in urls] for split, urls in listed.items()}
    others = sorted({name for names in files.values() for name in names if not name.endswith(".parquet")})
    if others or not files:
        held = f"holds {others[0]}" if others else "holds no data files"
        raise UserError(f"data.path={repo}: {held}, not Parquet; try its Parquet copy: data.revision={PARQUET_BRANCH}")
    if "train" not in files:
        raise UserError(f"data.path={repo}: no split named train; it has: {', '.join(files)}")
    return {split: files[name] for split, names in _NAMES.items() for name in [n for n in names if n in files][:1]}
