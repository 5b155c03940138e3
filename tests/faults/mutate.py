"""Mutations of valid files, to test that a reader gives a value or one error for whatever a file holds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

# As they stand in a file, since some of them cannot be written by json.dumps.
_NUMBERS = "0 -1 1 2 7 0.5 -0.0 1e9 1e400 1000000000 1000000000000 2147483648 9223372036854775808 18446744073709551616"
_WORDS = "null true false NaN Infinity -Infinity [] {} [[]] [null] [1,2] -9e307"
_TEXTS = ["", "0", "1e9", "1000000000", "nan", "true", "..", "../../x", "/dev/null", "~", "a\0b", "\ud83c", "ü\u2028\n"]
_ODD = [
    *_NUMBERS.split(),
    *_WORDS.split(),
    *map(json.dumps, _TEXTS),
    '{"": null}',
    '{"a": {"a": 1}, "a": 2}',
    '"' + "x" * 100_000 + '"',
    "9" * 5_000,  # more digits than int() converts
    "[" * 20_000 + "]" * 20_000,
    '{"a":' * 20_000 + "1" + "}" * 20_000,
]
_TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*"|-?\d[\d.]*(?:[eE][+-]?\d+)?|\b(?:true|false|null|NaN)\b|(?<=: )\w+')
_JUNK = (b"\xff", b"\xc3", b"\0", b"\xed\xa0\x80", b"\n", b"\t", b"\r", b'"', b"{", b"]", b": ", b"&a ")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
_HEADER_BYTES = 8  # of safetensors: the length of the JSON header that follows


def mutate(content: bytes, seed: int) -> bytes:
    """One mutation of a file, the same for the same arguments; at times the file is unchanged.

    Half of the mutations are of its bytes, whatever they mean; half change a value of a JSON document, of the JSON
    header of a safetensors file, or of a line of other text.
    """
    random = Random(seed)
    return random.choice((random.choice(_OF_BYTES), _value))(content, random)


def _flip(content: bytes, random: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 16))):
        if changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _truncate(content: bytes, random: Random) -> bytes:
    near = max(0, len(content) - random.randrange(1, 9))
    return content[: random.choice((random.randrange(len(content) + 1), near))]


def _drop(content: bytes, random: Random) -> bytes:
    start, end = _span(content, random)
    return content[:start] + content[end:]


def _duplicate(content: bytes, random: Random) -> bytes:
    start, end = _span(content, random)
    return content[:end] + content[start:]


def _zeros(content: bytes, random: Random) -> bytes:
    start, end = _span(content, random)
    return content[:start] + bytes(end - start) + content[end:]


def _insert(content: bytes, random: Random) -> bytes:
    position = random.randrange(len(content) + 1)
    return content[:position] + random.choice(_JUNK) + content[position:]


def _lines(content: bytes, random: Random) -> bytes:
    """A line that is dropped, doubled or moved."""
    lines = content.splitlines(keepends=True) or [b""]
    line = lines.pop(random.randrange(len(lines)))
    for _ in range(random.randrange(3)):
        lines.insert(random.randrange(len(lines) + 1), line)
    return b"".join(lines)


def _other_file(content: bytes, random: Random) -> bytes:
    marked = (b"\xff\xfe" + content, b"\xef\xbb\xbf" + content)  # by byte order marks
    return random.choice((b"", bytes(len(content)), _LFS_POINTER, *marked, *(text.encode() for text in _ODD)))


_OF_BYTES: list[Callable[[bytes, Random], bytes]] = [
    _flip,
    _truncate,
    _drop,
    _duplicate,
    _zeros,
    _insert,
    _lines,
    _other_file,
]


def _value(content: bytes, random: Random) -> bytes:
    """Another value at one place of a JSON document, JSON header or text."""
    header = content[_HEADER_BYTES : _HEADER_BYTES + int.from_bytes(content[:_HEADER_BYTES], "little")]
    for part in (content, header):
        try:
            document = json.loads(part)
        except ValueError:
            continue
        if isinstance(document, dict | list) and document:
            changed = _json_value(document, random).encode()
            return changed if part is content else _with_header(changed, content[_HEADER_BYTES + len(header) :])
    tokens = list(_TOKEN.finditer(content))
    if not tokens:
        return _flip(content, random)
    start, end = random.choice(tokens).span()
    value = random.choice((random.choice(_ODD).encode(), random.choice(tokens)[0]))
    return content[:start] + value + content[end:]


def _with_header(header: bytes, data: bytes) -> bytes:
    """A safetensors file."""
    return len(header).to_bytes(_HEADER_BYTES, "little") + header + data


def _json_value(document: Any, random: Random) -> str:
    """The document with one value replaced, moved, wrapped, left out or added."""
    holder, key = _place(document, random)
    other_holder, other_key = _place(document, random)
    mark = "a mutated value"
    odd = random.choice(_ODD)
    action = random.randrange(6)
    if action <= 2:
        holder[key] = mark
    elif action == 3:
        odd = json.dumps(other_holder[other_key])
        holder[key] = mark
    elif action == 4:
        del holder[key]
    elif isinstance(holder, dict):
        holder[random.choice(("", "a", str(other_key), f"{key}x"))] = mark
    else:
        holder.insert(key, mark)
    return json.dumps(document).replace(json.dumps(mark), odd)


def _place(document: Any, random: Random) -> tuple[Any, Any]:
    """A container in the document and one of its keys; each depth is about as likely."""
    while True:
        key = random.choice(list(document) if isinstance(document, dict) else range(len(document)))
        if random.random() < 0.3 or not isinstance(document[key], dict | list) or not document[key]:
            return document, key
        document = document[key]


def _span(content: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(content) + 1)
    return start, min(len(content), start + random.choice((1, 4, 64, 1 << 12)))
