"""The grammar of values: Hydra's, in every program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from programs import launch

from experiments.engine.grid import GridSettings
from ssa.command_line.compose import composed
from ssa.command_line.settings import parse
from ssa.command_line.values import (
    overridden,
    read_list,
    read_overrides,
    read_text,
    read_value,
    with_literal_paths,
)
from ssa.evaluation.settings import EvaluateSettings
from sweeps.__main__ import Settings as SweepSettings

VALUES: dict[str, Any] = {
    "null": None,
    "NULL": None,
    "true": True,
    "False": False,
    "yes": "yes",
    "3": 3,
    "-3": -3,
    "1e-3": 0.001,
    "inf": float("inf"),
    "'3'": "3",
    '"true"': "true",
    "'a, b'": "a, b",
    r"'it\'s'": "it's",
    "[1,[a,null]]": [1, ["a", None]],
    "{a:1}": {"a": 1},
    "a b": "a b",
    " a ": "a",
    r"a\,b": "a,b",
    "${x}": "${x}",
    "": "",
    # not in the grammar, or split by it
    "a,b": "a,b",
    "a=b": "a=b",
    "naïve": "naïve",
    "[1": "[1",
    "don't": "don't",
    "choice(a,b)": "choice(a,b)",
    "range(3)": "range(3)",
}


@pytest.mark.parametrize("text", VALUES)
def test_values(text: str) -> None:
    value = read_value(text)
    assert value == VALUES[text]
    assert type(value) is type(VALUES[text])


LISTS: dict[str, list[Any]] = {
    "": [],
    "[]": [],
    "[ ]": [],
    "a": ["a"],
    "[a]": ["a"],
    "a,b": ["a", "b"],
    "a, b": ["a", "b"],
    " [ a , b ] ": ["a", "b"],
    "a,": ["a"],
    "a,,b": ["a", "b"],
    "'a','b'": ["a", "b"],
    "\"a,b\",'c'": ["a,b", "c"],
    "['a,b',c]": ["a,b", "c"],
    "1,2.5,true,null": [1, 2.5, True, None],
    "'1'": ["1"],
    "[a],[b]": [["a"], ["b"]],
    "[[a],b]": [["a"], "b"],
    r"a\,b,c": ["a,b", "c"],
    "a=1,b=2": ["a=1", "b=2"],
    "[a=1,b=2]": ["a=1", "b=2"],
    "a=[1,2],b={c:3,d:4}": ["a=[1,2]", "b={c:3,d:4}"],
    "[a=[1,2]]": ["a=[1,2]"],
    "a='x,y',b=2": ["a='x,y'", "b=2"],
    "don't,won't": ["don't", "won't"],
    "(a,b)": ["(a,b)"],
    "a),b": ["a)", "b"],
    "[a,b": ["[a,b"],
    "é日本,🙂": ["é日本", "🙂"],
    "books/*.txt,~/x y.txt": ["books/*.txt", "~/x y.txt"],
}


@pytest.mark.parametrize("text", LISTS)
def test_lists_with_and_without_brackets(text: str) -> None:
    assert read_list(text) == LISTS[text]


TEXTS = {
    "a=b, (c): 'd' \"e\" ${f} {g} [h] #i\n": "a=b, (c): 'd' \"e\" ${f} {g} [h] #i\n",
    "The garden, said he": "The garden, said he",
    "": "",
    "null": "null",
    "010": "010",
    "[a,b]": "[a,b]",
    r"C:\new\,x": r"C:\new\,x",
    " spaces ": " spaces ",
    "'quoted'": "quoted",
    '"The garden, said he"': "The garden, said he",
    "'it''s'": "'it''s'",
    "'Tis": "'Tis",
    '"Yes," she said': '"Yes," she said',
    '"Yes" or "no"': '"Yes" or "no"',
    "'a','b'": "'a','b'",
    "'\"kept\"'": '"kept"',
}


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_unchanged_except_for_surrounding_quotes(text: str) -> None:
    assert read_text(text) == TEXTS[text]


@given(st.text())
def test_text_without_quotes_is_unchanged(text: str) -> None:
    unquoted = text.replace("'", "").replace('"', "")
    assert read_text(unquoted) == unquoted
    assert read_text(f"x{text}") == f"x{text}"


_WORDS = st.text("abcXYZ019_-+./*: ", min_size=1, max_size=8).map(str.strip).filter(bool)
_QUOTED = st.text("ab,=[]{}()'é🙂 ", max_size=8).map(lambda text: f'"{text}"')
_SCALARS = _WORDS | _QUOTED | st.sampled_from(["null", "true", "1e-3", "-7", "0", "False"])
_ELEMENTS = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3).map(lambda each: f"[{','.join(each)}]"))


@given(st.lists(_ELEMENTS, max_size=4), st.sampled_from([",", ", ", " ,"]))
def test_lists_are_those_of_hydra(elements: list[str], comma: str) -> None:
    text = comma.join(elements)
    hydra = OverridesParser.create().parse_override(f"key=[{text}]").value()
    assert repr(read_list(f"[{text}]")) == repr(hydra)
    if len(elements) != 1 or not elements[0].startswith("["):
        assert repr(read_list(text)) == repr(hydra)


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    read_value(text)
    read_list(text)


def test_overrides() -> None:
    overrides = ["+a.b=1", "model/size=nano", "~data", "x='y z'", "bad=[", "x.y=a=b"]
    assert overridden(overrides) == ["a.b", "model/size", "data", "x"]
    assert read_overrides(["x='y z'", "n=", "x.y=a,b"]) == {"x": "y z", "n": "", "x.y": "a,b"}


@pytest.mark.parametrize("typed", ["wikitext,piqa", "[wikitext,piqa]", "[wikitext, piqa]", "'wikitext',\"piqa\""])
def test_tasks_of_evaluate(typed: str) -> None:
    assert parse(EvaluateSettings, ["run=x", f"tasks={typed}"]).tasks == ["wikitext", "piqa"]


@pytest.mark.parametrize("typed", ["8,016,32", "[8, 16,32]"])
def test_numbers_of_evaluate(typed: str) -> None:
    assert parse(EvaluateSettings, ["run=x", f"lengths={typed}"]).lengths == [8, 16, 32]


@pytest.mark.parametrize("typed", ["scale=smoke,seed=1", "[scale=smoke,seed=1]", "['scale=smoke', \"seed=1\"]"])
def test_overrides_of_experiments_and_sweeps(typed: str) -> None:
    assert parse(SweepSettings, [f"train={typed}"]).train == ["scale=smoke", "seed=1"]
    settings = parse(GridSettings, ["scale=smoke", "seeds=2", f"train={typed}", "evaluate=[tasks=[a,b],trials=3]"])
    assert settings.train == ["scale=smoke", "seed=1"]
    assert settings.evaluate == ["tasks=[a,b]", "trials=3"]
    assert settings.tasks() == ["a", "b"]


@pytest.mark.parametrize("typed", ["logger.tags=[a, 'b c']", "logger.tags=[\"a\",'b c']"])
def test_train_reads_the_same_list(typed: str, tmp_path: Path) -> None:
    done = launch("train.py", typed, "--cfg", "job", "-p", "logger.tags", cwd=tmp_path)
    assert done.out.splitlines()[-2:] == ["- a", "- b c"]
    assert read_list(typed.partition("=")[2]) == ["a", "b c"]


PATHS = [
    "nan",
    "1e3",
    "inf",
    "null",
    "true",
    "12",
    "1_0",
    "a b (1)",
    "x,y",
    "it's",
    'q"u',
    "d$x",
    "${seed}",
    "k=v",
    "[a]",
]
PATHS += ["b\\s", "back\\", "q'\\' x", "\N{LATIN SMALL LETTER E WITH ACUTE}{1}"]


@pytest.mark.parametrize("name", PATHS)
def test_a_path_that_exists_is_that_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    overrides = [f"{key}={name}" for key in ("output_dir", "data.train", "+data.cache_dir")]
    values = composed("data=text", *overrides)
    found = values.output_dir, values.data.train, values.data.cache_dir
    assert found == (name, name, name)
    assert parse(EvaluateSettings, ["run=x", f"text={name}"]).text == name


def test_other_values_of_paths_are_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nan").touch()
    assert with_literal_paths(["-m", "data.train=nan,a,1", "seed=nan", "data.train='a b'", "data.train="]) == [
        *("-m", "data.train='nan',a,1", "seed=nan", "data.train='a b'", "data.train=")
    ]
