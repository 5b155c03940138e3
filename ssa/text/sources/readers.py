"""Streaming readers of text files: plain text, JSON Lines and Parquet, each optionally compressed.

Text is UTF-8, or the UTF-16 or UTF-32 that a byte order mark at its start declares.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import json
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from ssa.config_errors import closest
from ssa.errors import UserError

_KINDS = (".txt", ".jsonl", ".parquet")
LONGEST_TEXT = 4_000_000  # characters; a longer .txt file is split into several documents at blank lines
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_READ = 1 << 20  # bytes read at once
_MARKS = {  # the first that matches counts: the mark of UTF-16 begins that of UTF-32
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_UNMARKED: dict[tuple[bool, ...], str] = {  # by which of four bytes are mostly zero, as in text that is mostly ASCII
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
}
_CAT = {".gz": "zcat", ".zst": "zstdcat"}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ROWS = 64  # Parquet rows read at once


def documents(path: Path, column: str, lf: bool = False) -> Iterator[str]:
    """The documents of a file, in order, including empty ones; the format follows from the suffix.

    ``lf``: read CRLF and CR in a .txt file as LF.

    Raises:
        UserError: unknown suffix, damaged file, text that is not Unicode, line that is not JSON, or no such column.
    """
    import pyarrow as pa

    kind = kind_of(path)
    try:
        if kind == ".txt":
            yield from cut(_text(path, lf), LONGEST_TEXT)
        elif kind == ".jsonl":
            yield from _json_lines(path, column)
        else:
            yield from _parquet(path, column)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:  # the second: names of columns
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        advice = "replace the file"
        if getattr(error, "errno", None) in _NO_ROOM:  # in `_seekable`
            advice = f"unpack it, or set TMPDIR to a folder with more room than {tempfile.gettempdir()}"
        raise UserError(f"{path}: damaged or unreadable ({reason.rstrip('.')}); {advice}") from error


def kind_of(path: Path) -> str:
    """``.txt``, ``.jsonl`` or ``.parquet``.

    Raises:
        UserError: unknown suffix.
    """
    kind = _suffix(path)
    if kind not in _KINDS:
        raise UserError(f"{path}: unknown suffix; valid: {', '.join(_KINDS)}, each optionally with .gz or .zst")
    return kind


def is_text(path: Path) -> bool:
    """Whether it is a file with the suffix of a text."""
    return _suffix(path) in _KINDS and path.is_file()


def has_crlf(path: Path) -> bool:
    """Whether lines of a .txt file end in CRLF, by its first megabyte."""
    import pyarrow as pa

    block = b""
    with contextlib.suppress(OSError, pa.ArrowException):  # `documents` names the damage
        if _suffix(path) == ".txt":
            with _bytes(path) as stream:
                block = stream.read(_READ)
    return "\r\n" in block.decode(_encoding(block), "ignore")


def _suffix(path: Path) -> str:
    """The last suffix in lower case, before that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def cut(pieces: Iterable[str], size: int) -> Iterator[str]:
    """The same text in parts of at most ``size`` characters, cut in their second half after a blank line, else after a
    line, else after a word."""
    rest = ""
    for piece in pieces:
        text, start = rest + piece, 0
        while len(text) - start > size:
            found = ((text.rfind(sign, start + size // 2, start + size), len(sign)) for sign in ("\n\n", "\n", " "))
            end = next((position + length for position, length in found if position >= 0), start + size)
            yield text[start:end]
            start = end
        rest = text[start:]
    if rest:
        yield rest


def _bytes(path: Path) -> IO[bytes]:
    """The decompressed bytes; Arrow, unlike the package zstandard, detects truncated files."""
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(str(path), compression=_COMPRESSIONS.get(path.suffix.lower())), _READ)


def _text(path: Path, lf: bool = False) -> Iterator[str]:
    with _bytes(path) as stream:
        block = stream.read(_READ)
        encoding = _encoding(block)
        zeros = tuple(2 * every.count(0) > len(every) for every in (block[i::4] for i in range(4)))
        if encoding == "utf-8-sig" and (unmarked := _UNMARKED.get(zeros)):
            raise UserError(f"{path}: {unmarked} without a byte order mark; {_conversion(path, unmarked)}")
        decoder: codecs.IncrementalDecoder = codecs.getincrementaldecoder(encoding)()
        if lf:
            decoder = io.IncrementalNewlineDecoder(decoder, translate=True)  # type: ignore[assignment]
        offset = 0  # of the first byte not yet decoded
        while True:
            pending = len(decoder.getstate()[0])
            try:
                yield decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                place = f"{path}: not {encoding.removesuffix('-sig').upper()} at byte {offset - pending + error.start}"
                if encoding != "utf-8-sig":
                    raise UserError(f"{place}, as its byte order mark says; damaged or truncated, replace it") from None
                raise UserError(
                    f"{place}; if it is Latin-1, {_conversion(path, 'LATIN1')}; else name its encoding after -f"
                ) from None
            if not block:
                return
            offset += len(block)
            block = stream.read(_READ)


def _encoding(block: bytes) -> str:
    return next((name for mark, name in _MARKS.items() if block.startswith(mark)), "utf-8-sig")


def _conversion(path: Path, encoding: str) -> str:
    """Advice with a shell command."""
    cat = _CAT.get(path.suffix.lower(), "cat")
    plain = path.with_suffix("") if path.suffix.lower() in _CAT else path
    target = plain.with_suffix(f".utf8{plain.suffix}")
    source, new = shlex.quote(str(path)), shlex.quote(str(target))
    return f"convert it: {cat} {source} | iconv -f {encoding} -t UTF-8 > {new}"


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    parts: list[str] = []
    for piece in pieces:
        first, *others = piece.split("\n")
        parts.append(first)
        for line in others:
            yield "".join(parts)
            parts = [line]
    yield "".join(parts)


def _json_lines(path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(_lines(_text(path)), start=1):
        place = f"{path}:{number}"
        try:
            row = json.loads(line.removeprefix("\ufeff")) if line.strip() else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not JSON ({error}); a .jsonl file holds one object per line") from None
        if row is None:
            continue
        if not isinstance(row, dict):
            raise UserError(f"{place}: a {type(row).__name__}, not an object with the field {column!r}")
        if column not in row:
            raise _no_column(place, column, list(row))
        text = row[column]
        if text is None:
            continue
        if not isinstance(text, str):
            raise UserError(f"{place}: {column!r} is a {type(text).__name__}, not text; set data.text_column")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = ascii(text[error.start])[1:-1]
            raise UserError(
                f"{place}: {column!r} is not Unicode: {half} at character {error.start} is half a surrogate pair; "
                r"replace it by \ufffd, or remove it"
            ) from None
        yield text


def _no_column(place: str, column: str, columns: list[str]) -> UserError:
    return UserError(
        f"data.text_column={column}: no such column in {place}{closest(column, columns)}; valid: {', '.join(columns)}"
    )


def _parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _seekable(path) as source, pq.ParquetFile(source, pre_buffer=False) as table:
        schema = table.schema_arrow
        if column not in schema.names:
            raise _no_column(str(path), column, schema.names)
        kind = schema.field(column).type
        content = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(content) or pa.types.is_large_string(content) or pa.types.is_string_view(content)):
            raise UserError(f"{path}: the column {column!r} is {kind}, not text; set data.text_column")
        for batch in table.iter_batches(batch_size=_ROWS, columns=[column], use_threads=False):
            try:
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: the column {column!r} is not UTF-8 ({error.reason})") from None


@contextlib.contextmanager
def _seekable(path: Path) -> Iterator[IO[bytes]]:
    """The file, decompressed to disk first if needed, since reading Parquet needs seeks."""
    if path.suffix.lower() not in _COMPRESSIONS:
        with path.open("rb") as stream:
            yield stream
        return
    with tempfile.TemporaryFile() as unpacked, _bytes(path) as stream:
        shutil.copyfileobj(stream, unpacked)
        unpacked.seek(0)
        yield unpacked
