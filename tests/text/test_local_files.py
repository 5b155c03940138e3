from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from data_configs import data_config

from ssa.config import DataConfig
from ssa.errors import UserError
from ssa.text.corpus import open_corpus
from ssa.text.sources import readers

TEXTS = ["Ein Text über Wälder.\n\nZweiter Absatz.", "A second one: 日本語, 🎉.", "Third."]


def read(data: DataConfig, split: str = "train") -> list[str]:
    return list(open_corpus(data).documents(split))


def write(path: Path, texts: list[str], column: str = "text") -> Path:
    """The texts as the suffix says; a .txt file holds one."""
    kind = readers.kind_of(path)
    plain = path.with_name(f"plain{kind}")
    if kind == ".txt":
        plain.write_text("".join(texts), newline="")
    elif kind == ".jsonl":
        plain.write_text("\n".join(json.dumps({column: text, "id": 1}) for text in texts) + "\n\n")
    else:
        pq.write_table(pa.table({column: [*texts, None], "id": list(range(len(texts) + 1))}), plain)
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(path.suffix, lambda content: content)
    path.write_bytes(pack(plain.read_bytes()))
    if path != plain:
        plain.unlink()
    return path


@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
def test_every_kind_of_file(tmp_path: Path, kind: str, packed: str) -> None:
    expected = TEXTS if kind != ".txt" else ["".join(TEXTS)]
    path = write(tmp_path / f"some.texts{kind}{packed}", TEXTS, column="body")
    data = data_config("text", train=path, validation=write(tmp_path / f"v{kind}", ["v"], column="body"))
    data = data.model_copy(update={"test": str(write(tmp_path / f"t{kind}", ["t"], "body")), "text_column": "body"})
    assert read(data) == expected
    assert read(data, "validation") == ["v"]


def test_globs_are_read_in_the_order_of_paths(tmp_path: Path) -> None:
    for name in ("b/2", "a/1", "c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.txt").write_text(name)
    other = write(tmp_path / "other.jsonl", ["o"])
    more = write(tmp_path / "more.jsonl", ["m"])
    data = data_config("text", train=f"{tmp_path}/**/*.txt", validation=other, test=more)
    assert read(data) == ["a/1", "b/2", "c"]


def test_fingerprint_is_of_contents_not_of_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", ["Some text."])
    before = open_corpus(data_config("text", train=path)).fingerprint
    moved = path.rename(tmp_path / "b.txt")
    assert open_corpus(data_config("text", train=moved)).fingerprint == before
    moved.write_text("Some test.")
    assert open_corpus(data_config("text", train=moved)).fingerprint != before


def test_a_long_text_is_read_in_parts_and_little_memory(tmp_path: Path) -> None:
    paragraph = "Ein Satz über Wälder und noch einer.\n" * 20 + "\n"
    path = tmp_path / "long.txt"
    path.write_text(paragraph * 50_000)
    tracemalloc.start()
    lengths = [len(text) for text in readers.documents(path, "text") if text.endswith("\n\n")]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(lengths) == 50_000 * len(paragraph)
    assert readers.LONGEST_TEXT / 2 < max(lengths) <= readers.LONGEST_TEXT
    assert peak < 8 * readers.LONGEST_TEXT < path.stat().st_size


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_cut_keeps_the_text(size: int) -> None:
    random = Random(0)
    for _ in range(200):
        pieces = ["".join(random.choices("ab \n", k=random.randrange(20))) for _ in range(random.randrange(6))]
        parts = list(readers.cut(pieces, size))
        assert "".join(parts) == "".join(pieces)
        assert all(0 < len(part) <= size for part in parts)


def test_cut_prefers_blank_lines_then_lines_then_words() -> None:
    assert list(readers.cut(["one two\n\nthree four"], 12)) == ["one two\n\n", "three four"]
    assert list(readers.cut(["one two\nthree four"], 12)) == ["one two\n", "three four"]
    assert list(readers.cut(["one two three"], 10)) == ["one two ", "three"]


GZ, ZST = gzip.compress(b"word " * 9999), zstandard.ZstdCompressor().compress(b"word " * 9999)
BAD_FILES = {
    "empty": ("e.txt", b"", r"data.train=.*e\.txt is empty"),
    "suffix": ("a.csv", b"text", r"a\.csv: unknown suffix; valid: .txt, .jsonl, .parquet"),
    "no suffix": ("a", b"text", "unknown suffix"),
    "not utf-8": ("l.txt", b"x" * 1_500_000 + b"\xff", r"l\.txt: not UTF-8 at byte 1500000"),
    "cut-off utf-8": ("l.txt", b"abc\xc3", r"l\.txt: not UTF-8 at byte 3"),
    "utf-16": ("l.txt", "text".encode("utf-16"), r"l\.txt: not UTF-8 at byte 0"),
    "json not utf-8": ("l.jsonl", b'{"text": "a"}\n{"text": "\xff"}', r"l\.jsonl: not UTF-8 at byte 24"),
    "bad json": ("b.jsonl", b'{"text": "a"}\n{"text": ', r"b\.jsonl:2: not JSON"),
    "json list": ("b.jsonl", b'["text"]', r"b\.jsonl:1: a list, not an object with the field 'text'"),
    "json column": ("b.jsonl", b'{"txt": "a", "id": 1}', "data.text_column=text.*did you mean txt.*valid: txt, id"),
    "json type": ("b.jsonl", b'{"text": 3}', r"b\.jsonl:1: 'text' is a int, not text"),
    "cut-off gz": ("c.txt.gz", GZ[:-9], r"c\.txt\.gz: damaged or unreadable"),
    "flipped gz": ("c.txt.gz", GZ[:-6] + bytes([GZ[-6] ^ 1]) + GZ[-5:], r"c\.txt\.gz: damaged or unreadable"),
    "not gz": ("c.txt.gz", b"plain text", r"c\.txt\.gz: damaged or unreadable"),
    "cut-off zst": ("c.txt.zst", ZST[:-3], r"c\.txt\.zst: damaged or unreadable"),
    "not parquet": ("d.parquet", b"PAR1 or not PAR1", r"d\.parquet: damaged or unreadable"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read(data_config("text", train=path))
    assert "\n" not in str(error.value)


def test_parquet_without_the_column(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"content": ["a"], "length": [1]}), path)
    with pytest.raises(UserError, match=r"data.text_column=contents: .*did you mean content.*valid: content, length"):
        read(data_config("text", train=path, text_column="contents"))
    with pytest.raises(UserError, match="column 'length' is int64, not text"):
        read(data_config("text", train=path, text_column="length"))


def test_damage_inside_a_parquet_file(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", ["some text " * 1000])
    content = bytearray(path.read_bytes())
    content[4:40] = bytes(36)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"p\.parquet: damaged or unreadable"):
        read(data_config("text", train=path))


@pytest.mark.parametrize("pattern", ["none/*.txt", "gone.txt", "folder"])
def test_globs_that_match_nothing(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"data.validation=.*{pattern.replace('*', '.')}: (matches no file|a folder)"):
        open_corpus(data_config("text", train=write(tmp_path / "t.txt", ["t"]), validation=f"{tmp_path}/{pattern}"))


def test_a_file_in_two_splits(tmp_path: Path) -> None:
    path, copy = write(tmp_path / "a.txt", ["text"]), write(tmp_path / "b.txt", ["text"])
    with pytest.raises(UserError, match=r"data.test: .*b\.txt is also in data.train"):
        open_corpus(data_config("text", train=path, test=copy))
