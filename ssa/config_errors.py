"""One-line messages for configuration errors: the field, its value, what is valid."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ssa.model.config import PROJECTIONS

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text of at least one character",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-'",
    "list_type": "a list, [a,b]",
    "finite_number": "a finite number",
}
_MEANT = {"data.vocab_size": "data.tokenizer=bpe-8192"}  # a tokenizer of that size, trained on the text
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
RENAMED = {  # keys of version 0.1
    "model.width": "model.d_model",
    "model.mlp_width": "model.d_ff",
    "model.tied_head": "model.tie_embeddings",
    "data.held_out": "data.validation_fraction",
    **{f"model.temperature.{name}.base": f"model.temperature.{name}.multiplier" for name in PROJECTIONS},
}
REMOVED = [f"model.temperature.{setting}" for setting in ("train_length", "floor_length", "floor_scale")]  # of 0.1


def one_line(error: ValidationError, root: type[Any]) -> str:
    """The first error of a failed validation of `root`."""
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] == "missing":  # for a misspelled key
        first = next((one for one in errors if one["type"] in _UNKNOWN), first)
    of_item = first["loc"] and isinstance(first["loc"][-1], int)  # of a list of values: lengths=a, not lengths.0=a
    path = [str(part) for part in (first["loc"][:-1] if of_item else first["loc"])]
    field, kind = ".".join(path), first["type"]
    if kind == "value_error":
        return str(first["ctx"]["error"])
    if kind in _UNKNOWN:
        return unknown_key(field, root)
    if kind == "missing":
        return f"{field}: not set; write {field}=VALUE"
    path = [part for part in path if part.isidentifier() or part.isdecimal()]  # others name a type of a union
    others = (error for error in errors[1:] if error["loc"][:-1] == first["loc"][:-1] and len(path) < len(first["loc"]))
    words = [re.findall(r"\w+", error["ctx"]["expected"])[-1] for error in others if error["type"] == "literal_error"]
    also = f", or {words[0]}" if words else ""  # a union of a type and a word
    return f"{'.'.join(path)}={shown(first['input'])}: {_validity(first, path, root)}{also}"


def unknown_key(key: str, root: type[Any], also: Sequence[str] = ()) -> str:
    """A message for `key` (dotted), which `root` does not have; `also`: valid top-level keys besides its fields."""
    if key in RENAMED:
        return f"{key}: renamed; write {RENAMED[key]}"
    section, known, rest = _walk(key.split("."), root)
    if not rest:
        return f"{key}: the chosen {known[0]}= has no such setting; choose the option that has it"
    if section is None:
        return f"{key}: unknown key; {'.'.join(known)} is a value, it has no keys"
    prefix = "".join(f"{part}." for part in known)
    valid = [prefix + name for name in field_types(section)]
    wrong = prefix + rest[0]
    namesakes = [leaf for leaf in (*leaves(root), *also) if re.split("[./]", leaf)[-1] == rest[0]]
    misspelled = difflib.get_close_matches(wrong, valid, n=1, cutoff=0.85)
    meant = _MEANT.get(wrong) or next(iter([*misspelled, *namesakes]), None)
    guess = f", did you mean {meant}?" if meant else closest(wrong, valid if known else [*valid, *also])
    return f"{wrong}: unknown key{guess}; valid: {', '.join(field_types(section))}"


def closest(word: str, valid: Iterable[str]) -> str:
    """``, did you mean X?``, or an empty string."""
    names = list(valid)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.7)
    near = near or [name for name in names if word in re.split("[_.-]", name)]  # ssa: ssa_gpt2
    return f", did you mean {near[0]}?" if near else ""


def shown(value: Any) -> str:
    """A value as typed on the command line, shortened if long."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def field_types(section: type[Any]) -> dict[str, Any]:
    """The type of each field of a section, which is a pydantic model or a dataclass."""
    if issubclass(section, BaseModel):
        return {name: field.annotation for name, field in section.model_fields.items()}
    types = get_type_hints(section)
    return {field.name: types[field.name] for field in fields(section)}


def leaves(section: type[Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values in `section`."""
    for name, field in field_types(section).items():
        inner = _section_of(field)
        yield from leaves(inner, f"{prefix}{name}.") if inner else [prefix + name]


def _validity(error: ErrorDetails, path: list[str], root: type[Any]) -> str:
    kind = error["type"]
    if kind == "literal_error":
        choices = [word.strip("'").lower() for word in re.findall(r"'[^']*'|True|False", error["ctx"]["expected"])]
        return f"not one of the choices{closest(shown(error['input']), choices)}; valid: {', '.join(choices)}"
    if kind.startswith(("greater_than", "less_than")):
        return f"out of range; valid: {_range(path, root)}"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}{_instead(kind, error['input'], '.'.join(path))}"
    if kind == "too_short":
        return f"expected at least {error['ctx']['min_length']} values, A,B"
    section = _walk(path, root)[0]
    if section is not None:
        group = f"; as a group: {'/'.join(path)}={shown(error['input'])}" if "name" in field_types(section) else ""
        return f"expected the keys {', '.join(field_types(section))}{group}"
    return error["msg"]


def _instead(kind: str, value: Any, field: str) -> str:
    """A hint for a value of the wrong type that looks right."""
    if kind == "string_type" and isinstance(value, int | float):
        return f"; to give this as text, {field}='\"{shown(value)}\"'"
    return ", not text" if kind in ("int_type", "float_type") and isinstance(value, str) else ""


def _range(path: list[str], root: type[Any]) -> str:
    *section, name = [part for part in path if not part.isdecimal()]  # a number: an item of a list
    parent = _walk(section, root)[0]
    assert parent is not None, "a bound belongs to a field of a section"
    field = parent.model_fields[name]
    bounds = [
        f"{symbol} {getattr(item, bound)}"
        for item in _constraints((*field.metadata, field.annotation))
        for bound, symbol in _BOUNDS.items()
        if getattr(item, bound, None) is not None
    ]
    return " and ".join(bounds)


def _constraints(items: Iterable[Any]) -> Iterator[Any]:
    """Constraint objects in nested `Annotated` and unions."""
    for item in items:
        yield item
        yield from _constraints((*getattr(item, "metadata", ()), *get_args(item)))


def _walk(path: list[str], root: type[Any]) -> tuple[type[Any] | None, list[str], list[str]]:
    """Follows `path` while there are fields: the section reached (None at a value), the path walked, the rest."""
    section: type[Any] | None = root
    for depth, part in enumerate(path):
        if section is None or part not in field_types(section):
            return section, path[:depth], path[depth:]
        section = _section_of(field_types(section)[part])
    return section, path, []


def _section_of(annotation: Any) -> type[Any] | None:
    kinds = (kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type))
    return next((kind for kind in kinds if issubclass(kind, BaseModel) or is_dataclass(kind)), None)
