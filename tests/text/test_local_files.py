from __future__ import annotations

import gzip
import json
import re
import subprocess
import tracemalloc
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from data_configs import data_config
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ssa.config import DataConfig
from ssa.errors import UserError
from ssa.text.corpus import open_corpus
from ssa.text.sources import readers
from ssa.text.sources.local import find_files

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
    "unmarked utf-16": ("l.txt", "\u201ctext\u201d".encode("utf-16-le"), "UTF-16LE without a byte order mark"),
    "cut-off utf-16": ("l.txt", "text".encode("utf-16")[:-1], r"l\.txt: not UTF-16 at byte 8, as its byte order mark"),
    "json too deep": ("d.jsonl", b'{"text": ' + b"[" * 99_999, r"d\.jsonl:1: not JSON"),
    "half a surrogate pair": (
        "s.jsonl",
        rb'{"text": "\ud83c\udf89 whole"}' + b"\n" + rb'{"text": "half \ud83c"}',
        r"s\.jsonl:2: 'text' is not Unicode: \\ud83c at character 5 is half a surrogate pair; replace it by \\ufffd",
    ),
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
    with pytest.raises(
        UserError, match=f"data.validation=.*{pattern.replace('*', '.')}: (matches no file|no text in this folder)"
    ):
        open_corpus(data_config("text", train=write(tmp_path / "t.txt", ["t"]), validation=f"{tmp_path}/{pattern}"))


def test_a_folder_is_all_its_texts(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    for name in ("b.txt", "a/c.jsonl", ".hidden.txt", ".git/d.txt", "a/e.md", "f.txt.bak"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, [f"text of {name}"]) if name.endswith((".txt", ".jsonl")) else (folder / name).touch()
    found = find_files("data.train", str(folder))
    assert [str(path.relative_to(folder)) for path in found] == ["a/c.jsonl", "b.txt"]
    assert read(data_config("text", train=folder))


def test_a_file_in_two_splits(tmp_path: Path) -> None:
    path, copy = write(tmp_path / "a.txt", ["text"]), write(tmp_path / "b.txt", ["text"])
    with pytest.raises(UserError, match=r"data.test: .*b\.txt is also in data.train"):
        open_corpus(data_config("text", train=path, test=copy))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_text_with_a_byte_order_mark(tmp_path: Path, kind: str, encoding: str) -> None:
    path = write(tmp_path / f"marked{kind}", TEXTS)
    path.write_bytes(path.read_bytes().decode().encode(encoding))
    assert "".join(readers.documents(path, "text")) == "".join(TEXTS)


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_the_advice_for_other_encodings_works(tmp_path: Path, encoding: str, packed: str) -> None:
    path = tmp_path / f"it's [some] text.txt{packed}"
    content = "Schöne Wälder.\nEnde.\n"
    path.write_bytes(gzip.compress(content.encode(encoding)) if packed else content.encode(encoding))
    with pytest.raises(UserError) as error:
        read(data_config("text", train=path))
    (command,) = re.findall(r"convert it: ([^;]*)", str(error.value))
    subprocess.run(["sh", "-c", command], check=True, timeout=60)
    assert list(readers.documents(tmp_path / "it's [some] text.utf8.txt", "text")) == [content]


def test_a_git_lfs_pointer_in_the_place_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a folder" / "p.parquet"
    path.parent.mkdir()
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    advice = rf"p\.parquet: a Git LFS pointer, not the file itself; .*: git -C '{path.parent}' lfs pull"
    with pytest.raises(UserError, match=advice):
        open_corpus(data_config("text", train=path))


def test_a_path_that_exists_is_no_glob(tmp_path: Path) -> None:
    folder = tmp_path / "v[1] *"
    folder.mkdir()
    for name in ("a[b].txt", "ab.txt", "c?.txt", "cd.txt"):
        (folder / name).write_text(name)
    assert read(data_config("text", train=folder / "a[b].txt", validation=folder / "ab.txt")) == ["a[b].txt"]
    assert read(data_config("text", train=folder / "c?.txt", validation=folder / "ab.txt")) == ["c?.txt"]
    assert read(data_config("text", train=folder / "c*.txt", validation=folder / "ab.txt")) == ["c?.txt", "cd.txt"]


@pytest.mark.parametrize("path", ["~no-such-user/a.txt", "a" * 5000, "a\0b.txt"])
def test_paths_that_cannot_be(path: str) -> None:
    with pytest.raises(UserError, match="matches no file"):
        open_corpus(data_config("text", train=path))


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=lambda kind: str(kind)
)
def test_every_kind_of_text_column(tmp_path: Path, kind: pa.DataType) -> None:
    pq.write_table(pa.table({"text": pa.array([*TEXTS, None, TEXTS[0]], kind)}), tmp_path / "p.parquet")
    assert list(readers.documents(tmp_path / "p.parquet", "text")) == [*TEXTS, TEXTS[0]]


def read_all(path: Path) -> list[str] | UserError:
    """Valid Unicode documents, or a one-line error."""
    try:
        found = list(readers.documents(path, "text"))
    except UserError as error:
        return error
    "".join(found).encode()
    return found


any_bytes = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
LINES = st.lists(
    st.one_of(
        st.binary(max_size=20), st.sampled_from([b'{"text": "a"}', rb'{"text": "\ud83c"}', b'{"text": 1}', b"null"])
    )
).map(b"\n".join)


@any_bytes
@given(content=LINES, kind=st.sampled_from([".txt", ".jsonl", ".parquet", ".txt.gz", ".jsonl.zst", ".parquet.gz"]))
@example(content=b"\xff\xfe\x00", kind=".txt")
def test_any_bytes_are_documents_or_one_error(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / f"any{kind}"
    path.write_bytes(content)
    read_all(path)


@any_bytes
@given(text=st.text(), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
@example(text="a\r\nb\rc\x85d\u2028e", encoding="utf-16")
def test_any_text_is_read_as_it_is(tmp_path: Path, text: str, encoding: str) -> None:
    rows, plain = tmp_path / "any.jsonl", tmp_path / "any.txt"
    rows.write_bytes("\n".join(json.dumps({"text": row}, ensure_ascii=False) for row in (text, "b")).encode(encoding))
    assert read_all(rows) == [text, "b"]
    plain.write_bytes(("_" + text).encode(encoding))
    assert read_all(plain) == ["_" + text]
    assert readers.has_crlf(plain) == ("\r\n" in text)


def test_crlf_is_a_line_end_wherever_a_block_ends(tmp_path: Path) -> None:
    (tmp_path / "dos.txt").write_bytes(b"one line\r\n\r\n" * 200_000)  # 2.4 MB
    (tmp_path / "unix.txt").write_bytes(b"one line\n\n")
    (tmp_path / "old.txt").write_bytes(b"a lone \r stays")
    given = {"validation": tmp_path / "unix.txt", "test": tmp_path / "old.txt"}
    new, old = (data_config("text", train=tmp_path / "dos.txt", **given, text_version=version) for version in (2, 1))
    assert "".join(read(new)) == "one line\n\n" * 200_000
    assert "".join(read(old)) == "one line\r\n\r\n" * 200_000
    assert read(new, "test") == ["a lone \r stays"]
    assert open_corpus(new).fingerprint != open_corpus(old).fingerprint
    mixed = open_corpus(data_config("text", train=tmp_path))
    assert mixed.notes[0] == "1 of 3 files: line ends CRLF are read as LF"
    assert not any("CRLF" in note for note in open_corpus(data_config("text", train=tmp_path / "unix.txt")).notes)


@any_bytes
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1), kept=st.integers(0, 10**6))
def test_a_damaged_parquet_file_is_documents_or_one_error(
    tmp_path: Path, changes: list[tuple[int, int]], kept: int
) -> None:
    path = write(tmp_path / "p.parquet", TEXTS)
    content = bytearray(path.read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    path.write_bytes(content[: kept + 1])
    read_all(path)
