"""KEY=VALUE command lines of programs without config groups: the fields of one pydantic model.

Values have the grammar of `ssa.command_line.values`.  Text needs no second pair of quotes: ``prompt="a=b, (c): d"``.
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ssa.command_line.output import keep_writable
from ssa.command_line.values import is_path, read_list, read_text, read_value
from ssa.config_errors import one_line, shown, unknown_key
from ssa.errors import EXIT_BAD_INPUT, EXIT_BUG, EXIT_INTERRUPTED, UserError
from ssa.files import disk_errors
from ssa.model.config import TOO_LARGE
from ssa.paths import command, shown_from
from ssa.paths import shown as shown_path
from ssa.processes import interruptible

S = TypeVar("S", bound=BaseModel)

_WORDS = {"string": "TEXT", "integer": "INTEGER", "number": "NUMBER", "boolean": "true|false", "array": "A,B"}
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
_COLUMN, _WIDTH = 28, 100


def program(
    settings: type[S],
    job: Callable[[S], None],
    *,
    name: str,
    purpose: str,
    examples: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    arguments: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> int:
    """Parse the arguments and run `job`; returns the exit code.

    A `UserError` is one line on stderr and exit code 2; an interrupt is 130; a bug is a traceback and 1.

    Args:
        settings: text, numbers, booleans, choices and lists; ``Field(description=...)`` is shown on the help page.
        job: heavy imports belong inside it, so that mistakes are reported at once.
        name: the program's file, or ``-m`` and its package; see `ssa.paths.command`.
        purpose: one line for the help page.
        examples: arguments, for the help page.
        files: for the help page, what each file or folder of the repository contains.
        arguments: default: ``sys.argv[1:]``.
        defaults: replace the defaults declared in `settings`.
    """
    keep_writable()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if {"--help", "-h"} & set(arguments):
            print(help_text(settings, name, purpose, examples, files, defaults))
        else:
            with interruptible(), disk_errors():
                job(parse(settings, arguments, defaults))
        sys.stdout.flush()
    except UserError as error:
        return complain(error)
    except KeyboardInterrupt as error:
        return interrupted(error)
    except Exception:
        traceback.print_exc()
        return EXIT_BUG
    return 0


def complain(error: UserError) -> int:
    """Print one line on stderr; returns the exit code."""
    print("error:", error, file=sys.stderr)
    return EXIT_BAD_INPUT


def interrupted(error: KeyboardInterrupt) -> int:
    """Print one line on stderr, with what the error says about finished work; returns the exit code."""
    print("; ".join(["interrupted", *map(str, error.args)]), file=sys.stderr)
    return EXIT_INTERRUPTED


def parse(settings: type[S], arguments: Sequence[str], defaults: Mapping[str, Any] | None = None) -> S:
    """Settings from ``KEY=VALUE`` arguments, with ``defaults`` for keys that are not given.

    Raises:
        UserError: the first mistake.
    """
    fields = _fields(settings)
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if argument.startswith("-"):
            raise UserError(f"{shown(argument)}: unknown flag; values are set as KEY=VALUE without dashes; see --help")
        if not equals or not key:
            guess = f", did you mean run={argument}?" if "run" in fields and os.path.isdir(argument) else ""
            hint = "a value with spaces is quoted, KEY='two words'; see --help"
            raise UserError(f"{shown(argument)}: not KEY=VALUE{guess}; {hint}")
        if key not in fields:
            raise UserError(unknown_key(key, settings))
        if key in values:
            raise UserError(f"{key}: given twice")
        values[key] = _read(key, text, fields[key])
    try:
        return settings.model_validate({**(defaults or {}), **values})
    except ValidationError as error:
        raise UserError(one_line(error, settings)) from None


def help_text(
    settings: type[BaseModel],
    name: str,
    purpose: str,
    examples: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> str:
    """The page printed by ``--help``; see `program`."""
    lines = [purpose, "", f"usage: {command(name)} KEY=VALUE ...", ""]
    for key, schema in _fields(settings).items():
        field = settings.model_fields[key]
        value = (defaults or {}).get(key, field.get_default(call_default_factory=True))
        default = "required" if key not in (defaults or {}) and field.is_required() else f"default: {typed(value)}"
        notes = "; ".join([*limits_of(schema), default])
        lines += entry(f"{key}={kind_of(schema)}", f"{field.description or ''} ({notes})".strip())
    return "\n".join([*lines, *closing_sections(name, examples, files)])


def entry(left: str, text: str) -> list[str]:
    """Lines of a help page: ``left``, and beside or below it the text, wrapped."""
    wrapped, left = textwrap.wrap(text, _WIDTH - _COLUMN), f"  {left}"
    above = [left] if len(left) >= _COLUMN or not wrapped else []
    starts = ["" if above else left, *[""] * len(wrapped)]
    return [*above, *(f"{start:<{_COLUMN}}{line}" for start, line in zip(starts, wrapped, strict=False))]


def closing_sections(name: str, examples: Sequence[str], files: Mapping[str, str] | None) -> list[str]:
    """The last lines of a help page: examples, and where the code is."""
    lines = ["", "examples", *(f"  {command(name)} {example}" for example in examples)] if examples else []
    if files:
        paths = {shown_path(path): content for path, content in files.items()}
        width, start = max(map(len, paths)), shown_from()
        lines += ["", f"where to look, in {start}" if start else "where to look"]
        lines += [f"  {path:<{width}}  {content}" for path, content in paths.items()]
    return lines


def _fields(settings: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """The JSON schema of each field, with ``optional`` for whether it may be null."""
    fields = {}
    for key, schema in settings.model_json_schema()["properties"].items():
        kinds = schema.get("anyOf", [schema])
        (kind, *others) = [kind for kind in kinds if kind.get("type") != "null"]
        assert not others, f"{key}: a union of types is ambiguous"
        fields[key] = {**kind, "optional": len(kinds) > 1}
    return fields


def _read(key: str, text: str, schema: Mapping[str, Any]) -> Any:
    """A value of the field's type, or one that validation refuses."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UserError(f"{key}={shown(ascii(text)[1:-1])}: not valid UTF-8")
    if schema["type"] == "string" and text and is_path(text):
        return text
    if schema["optional"] and read_value(text) is None:
        return None
    if schema["type"] == "string":
        return read_text(text)
    if schema["type"] == "array":
        return [_number(value, schema["items"]) for value in read_list(text)]
    return _number(read_value(text), schema)


def _number(value: Any, schema: Mapping[str, Any]) -> Any:
    """Read 010 as 10; in Hydra's grammar it is text."""
    is_number = schema.get("type") in ("integer", "number") and isinstance(value, str)
    return int(value) if is_number and re.fullmatch(r"[+-]?0\d+", value, re.ASCII) else value


def kind_of(schema: Mapping[str, Any]) -> str:
    """The type of a field, or its choices."""
    choices = schema.get("enum") or ([schema["const"]] if "const" in schema else [_WORDS[schema["type"]]])
    return "|".join([*map(typed, choices), *(["null"] if schema["optional"] else [])])


def limits_of(schema: Mapping[str, Any]) -> list[str]:
    """The range of a number, in one text, if it has one."""
    bounds = {bound: schema[bound] for bound in _BOUNDS if schema.get(bound, TOO_LARGE) != TOO_LARGE}
    limits = [f"{_BOUNDS[bound]} {value:.10g}" for bound, value in bounds.items()]
    return [" and ".join(limits)] if limits else []


def typed(value: Any) -> str:
    """A value as typed on the command line."""
    if isinstance(value, list) and value:
        return ",".join(map(typed, value))
    return value if isinstance(value, str) and value else json.dumps(value)
