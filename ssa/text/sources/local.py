"""Local text files, one glob per split."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssa.config import DataConfig
from ssa.errors import UserError
from ssa.files import cache_root, expanded, hash_of, hash_of_file, refuse_lfs_pointer
from ssa.progress import counted
from ssa.text.sources import readers


class LocalFiles:
    """The files of ``data.train``, ``data.validation`` and ``data.test``, in the order of their paths.

    Raises:
        UserError: a glob matches no file, a file is empty or of unknown type, or one file is in two splits.
    """

    def __init__(self, data: DataConfig) -> None:
        self.files = split_files(data)
        self.splits = frozenset(self.files)
        self._column = data.text_column
        self._keeps_crlf = data.text_version == 1
        root = cache_root(data.cache_dir)
        self._hashes: dict[Path, str] = {}
        owners: dict[str, tuple[str, Path]] = {}
        for split, paths in self.files.items():
            for path in paths:
                self._hashes[path] = hash_of_file(path, root)
                owner, other = owners.setdefault(self._hashes[path], (split, path))
                if owner != split:
                    raise UserError(f"data.{split}: {path} is also in data.{owner} ({other}); a text has one split")

    @property
    def notes(self) -> list[str]:
        files = [path for paths in self.files.values() for path in paths]
        found = sum(map(self._has_crlf, files))
        return [f"{found} of {counted(len(files), 'files')}: line ends CRLF are read as LF"] if found else []

    @property
    def fingerprint(self) -> str:
        """Depends on contents only, so that files may move."""
        contents = {
            split: [
                (readers.kind_of(path), self._hashes[path], *(["crlf"] if self._has_crlf(path) else []))
                for path in paths
            ]
            for split, paths in self.files.items()
        }
        return hash_of(["text", self._column, readers.LONGEST_TEXT, contents])

    def documents(self, split: str) -> Iterator[str]:
        for path in self.files[split]:
            yield from readers.documents(path, self._column, lf=self._has_crlf(path))

    def _has_crlf(self, path: Path) -> bool:
        return not self._keeps_crlf and readers.has_crlf(path)


def split_files(data: DataConfig) -> dict[str, list[Path]]:
    """The files of each split, as `find_files`."""
    globs = {"train": data.train, "validation": data.validation, "test": data.test}
    return {split: find_files(f"data.{split}", pattern) for split, pattern in globs.items() if pattern}


def find_files(field: str, pattern: str, names: Sequence[str] = ()) -> list[Path]:
    """The text files that a pattern, a file, a folder or a glob, matches, sorted; they are not read.

    Of a folder, all files with the suffix of a text, at any depth, but for hidden ones.  A file or a folder that exists
    is meant literally, even with ``*`` or ``[`` in its name.  The error message calls the pattern ``field``, and lists
    ``names`` as valid too.

    Raises:
        UserError: the glob matches no file, or one that is empty or of an unknown kind.
    """
    wanted = expanded(pattern)
    literal = next((path for path in (wanted, *wanted.parents) if os.path.exists(path)), Path())
    rest = str(wanted.relative_to(literal))
    found = (
        [literal]
        if literal == wanted
        else [literal / name for name in sorted(glob.glob(rest, root_dir=literal, recursive=True))]
    )
    if literal == wanted and literal.is_dir():
        found = [path for path in sorted(literal.rglob("*")) if readers.is_text(path) and not _is_hidden(path, literal)]
    files = [path for path in found if path.is_file()]
    if not files:
        hint = "matches no file" if literal != wanted else "no text in this folder"
        valid = ", ".join([*names, f"a file, a folder or a glob, {field}='texts/*.txt'"])
        raise UserError(f"{field}={pattern}: {hint} (from {Path.cwd()}); valid: {valid}")
    for path in files:
        readers.kind_of(path)
        refuse_lfs_pointer(path, f"{field}={pattern}: {path}")
        if path.stat().st_size == 0:
            raise UserError(f"{field}={pattern}: {path} is empty; remove it or leave it out of the glob")
    return files


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
