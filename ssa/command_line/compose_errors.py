"""Errors of Hydra and OmegaConf in composing a config, in one plain line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import yaml  # type: ignore[import-untyped]
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from ssa.command_line import conf_groups
from ssa.config import Config
from ssa.config_errors import closest, unknown_key
from ssa.paths import ROOT

# Raised by Hydra for a wrong config
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError)


def explain(error: BaseException, overrides: Sequence[str]) -> str:
    """The line for an error.

    Args:
        error: one of `COMPOSITION_ERRORS`.
        overrides: as typed.
    """
    chain, groups = list(_chain(error)), conf_groups.options()
    is_number = "Config group override must be" in str(error)  # Hydra takes an option such as 124 for a number
    for key, _, option in (override.partition("=") for override in overrides):
        if key in groups and (option.startswith("_") or (is_number and option not in groups[key])):
            return _no_such_option(PurePosixPath(key, option), list(groups[key]))
    for cause in reversed(chain):
        text = _known(cause)
        if text:
            return text
    first = [line for line in str(chain[0]).splitlines() if line.strip()][:1]
    why = [str(cause).splitlines()[0] for cause in chain[1:] if str(cause)]
    return ": ".join(dict.fromkeys(filter(None, [" ".join(overrides), *first, *why]))) or type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _known(error: BaseException) -> str | None:
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, MissingConfigException) and error.options is not None:
        return _no_such_option(PurePosixPath(str(error.missing_cfg_file)), list(error.options))
    if isinstance(error, InterpolationResolutionError) and error.full_key:
        return f"{error.full_key}: {str(error).splitlines()[0]}"
    if isinstance(error, MissingMandatoryValue) and error.full_key:
        return f"{error.full_key}: not set; write {error.full_key}=VALUE"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{_short(mark.name)}: line {mark.line + 1}: not valid YAML: {error.problem}"
    return _known_by_message(str(error))


def _known_by_message(message: str) -> str | None:
    """Most mistakes have one exception class in Hydra, and differ in the message only."""
    file = re.match(r"In '([^']+)': ", message)
    where = f"{file[1]}.yaml: " if file and file[1] != "config" else ""
    if found := re.search(r"Could not (?:override|delete(?: from config\.)?) '([^']+)'", message):
        return where + _unknown(found[1].partition("=")[0])
    if found := re.search(r"config group '([^']+)' does not exist", message):
        return _unknown(found[1])
    if found := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'", message):
        key, _, values = found[1].partition("=")
        return f"{found[1]}: several values need --multirun (-m); one list is written {key}=[{values}]"
    if found := re.search(r"Multiple values for ([\w/]+)\.", message):
        return f"{where}{found[1]}: chosen twice; choose another option with {found[1]}=OPTION, without +"
    return None


def _no_such_option(path: PurePosixPath, valid: list[str]) -> str:
    groups = conf_groups.options()
    group = next((parent for parent in path.parents if str(parent) in groups), path.parent)
    option = str(path.relative_to(group))
    valid = sorted(name for name in valid if not name.startswith("_"))
    return f"{group}={option}: no such option{closest(option, valid)}; valid: {', '.join(valid)}"


def _unknown(key: str) -> str:
    groups = conf_groups.options()
    if key.startswith("hydra."):
        return f"{key}: not a setting of Hydra; see --hydra-help"
    if "/" in key:
        return f"{key}: unknown group{closest(key, groups)}; valid: {', '.join(groups)}"
    return unknown_key(key, Config, also=list(groups))


def _unreadable(error: OverrideParseException) -> str:
    override = error.override
    if "=" in override:
        return (
            f"{override}: cannot be read as KEY=VALUE; a value with special characters is quoted twice, "
            """'data.train="a b.txt"'"""
        )
    choosing = [f"{group}={override}" for group, names in conf_groups.options().items() if override in names]
    guess = f", did you mean {choosing[0]}?" if choosing else ""
    return f"{override}: not KEY=VALUE or GROUP=OPTION{guess}; see --help"


def _short(path: str) -> str:
    return str(Path(path).relative_to(ROOT)) if Path(path).is_relative_to(ROOT) else path
