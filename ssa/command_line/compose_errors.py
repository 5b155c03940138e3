"""Hydra's and OmegaConf's exceptions, raised before a job starts, in one plain line."""

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
from ssa.errors import UserError

# Everything that reading and composing a config raises when the config is wrong.
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, ValueError)


def explain(error: BaseException, overrides: Sequence[str]) -> str:
    """What the user has to mend: `error` is one of `COMPOSITION_ERRORS`, `overrides` what was typed."""
    chain = list(_chain(error))
    for cause in reversed(chain):
        text = _known(cause)
        if text:
            return text
    if "Config group override must be" in str(error):  # Hydra takes an option such as 124 for a number
        groups = conf_groups.options()
        for key, _, option in (override.partition("=") for override in overrides):
            if key in groups and option not in groups[key]:
                return _no_such_option(PurePosixPath(key, option), list(groups[key]))
    told = [line for line in str(chain[0]).splitlines() if line.strip()][:1]
    why = [str(cause).splitlines()[0] for cause in chain[1:] if str(cause)]
    return ": ".join(dict.fromkeys(filter(None, [" ".join(overrides), *told, *why]))) or type(error).__name__


def refuse_launchers(overrides: Sequence[str], folders: Sequence[Path]) -> None:
    """Hydra ignores in a sweep what an experiment file in one of `folders` says of the launcher.

    Raises:
        UserError: one of the experiments that `overrides` name says something of it.
    """
    for override in overrides:
        key, _, names = override.partition("=")
        files = [folder / "experiment" / f"{name}.yaml" for name in names.split(",") for folder in folders]
        for file in files if key == "experiment" else ():
            if file.is_file() and _sets_launcher(file):
                raise UserError(
                    f"{override}: {file.name} sets the launcher, which Hydra ignores there; "
                    "take it out and write hydra/launcher=NAME on the command line"
                )


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
    """Hydra raises one class for most mistakes, so that only its words tell them apart."""
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
    return f"{group}={option}: no such option{closest(option, valid)}; valid: {', '.join(sorted(valid))}"


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


def _sets_launcher(file: Path) -> bool:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        chosen = [str(key) for entry in content.get("defaults", []) if isinstance(entry, dict) for key in entry]
        return any("hydra/launcher" in key for key in chosen) or "launcher" in (content.get("hydra") or {})
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError):
        return False  # Hydra says what is wrong with the file.


def _short(path: str) -> str:
    folder = conf_groups.CONF.parent
    return str(Path(path).relative_to(folder)) if Path(path).is_relative_to(folder) else path
