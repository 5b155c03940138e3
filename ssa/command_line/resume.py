"""``resume=RUN_FOLDER``: the config of the run, with the overrides of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssa.command_line.values import overridden
from ssa.config import Config, parse
from ssa.errors import UserError
from ssa.record.run_files import check_unchanged, load_config
from ssa.redaction import REDACTED


def resumed(composed: dict[str, Any], overrides: Sequence[str], groups: set[str]) -> Config:
    """The config in the folder ``composed["resume"]``, changed by overrides but not by defaults.

    Args:
        composed: the composed config, as plain values.
        overrides: as typed.
        groups: the config groups.

    Raises:
        UserError: it is not a run folder, an override would change the run's results, or a value was recorded without
            the secret in it and is not given again.
    """
    folder = composed["resume"]
    values = load_config(folder).plain() | {key: composed[key] for key in ("resume", "rerun")}
    keys = overridden(overrides)
    for group in (key for key in keys if key in groups):
        _choose(values, composed, group)
    for key in (key for key in keys if key not in groups):
        _copy(values, composed, key.split("."))
    for key in ("data", "init_from"):
        _check_complete(values.get(key), key, folder)
    config = parse(values)
    check_unchanged(folder, config)
    return config


def _check_complete(value: Any, key: str, folder: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _check_complete(item, f"{key}.{name}", folder)
    elif REDACTED in str(value):
        raise UserError(f"{key}={value}: recorded without its secret; give it again: resume={folder} {key}=VALUE")


def label(values: dict[str, Any], group: str) -> Any:
    """The name of the option of `group` in a config of plain values; None if the options have no name."""
    chosen: Any = values
    for part in group.split("/"):
        chosen = chosen.get(part) if isinstance(chosen, dict) else None
    return chosen.get("name") if isinstance(chosen, dict) else chosen


def _choose(values: dict[str, Any], composed: dict[str, Any], group: str) -> None:
    """Apply a typed option of `group`: it must be the run's own, except for the logger."""
    before, after = label(values, group), label(composed, group)
    if after is None or (group == "logger" and before != after):
        values[group] = composed[group]
    elif before != after:
        raise UserError(
            f"{composed['resume']} was made with another choice ({group}: {before} -> {after}): "
            "resume it unchanged, or start a new run"
        )


def _copy(values: dict[str, Any], composed: dict[str, Any], path: Sequence[str]) -> None:
    """Apply a typed value, also one that was added or deleted; `parse` checks the result."""
    head, *rest = path
    if head not in composed:
        values.pop(head, None)
    elif rest and isinstance(values.get(head), dict) and isinstance(composed[head], dict):
        _copy(values[head], composed[head], rest)
    else:
        values[head] = composed[head]
