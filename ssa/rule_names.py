"""The temperature rules in ``conf/model/temperature``, without torch: valid terms, and the names of variants."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]

from ssa.config_errors import closest
from ssa.model.config import PROJECTIONS, SLOTS, TemperatureConfig
from ssa.paths import CONF

_RULES = CONF / "model" / "temperature"
Chosen = Mapping[str, Mapping[str, str]]  # the terms of each scaled projection, by slot


@functools.cache
def _rules() -> dict[str, tuple[str, Chosen]]:
    """``per`` and the terms of each rule, by name."""
    found: dict[str, tuple[str, Chosen]] = {}
    for file in sorted(_RULES.glob("*.yaml")):
        rule = yaml.safe_load(file.read_text(encoding="utf-8"))
        scaled: Chosen = {key: rule[key] for key in PROJECTIONS if rule.get(key)}
        terms = {key: {slot: name for slot, name in terms.items() if name != "none"} for key, terms in scaled.items()}
        found[file.stem] = (str(rule.get("per", "head")), terms)
    return found


def rule_names() -> list[str]:
    """The options of ``model/temperature=``."""
    return list(_rules())


def rule(name: str) -> TemperatureConfig:
    """The rule that ``model/temperature=NAME`` selects.

    Raises:
        KeyError: there is none.
    """
    if name not in _rules():
        raise KeyError(name)
    values: dict[str, Any] = {}
    for option in ("none", name):
        values |= yaml.safe_load((_RULES / f"{option}.yaml").read_text(encoding="utf-8"))
    values.pop("defaults", None)
    return TemperatureConfig.from_plain(values)


@functools.cache
def term_names() -> dict[str, list[str]]:
    """The terms of each slot that any rule has."""
    names: dict[str, set[str]] = {slot: set() for slot in SLOTS}
    for _, scaled in _rules().values():
        for slot, name in (item for terms in scaled.values() for item in terms.items()):
            names[slot].add(name)
    return {slot: sorted(found) for slot, found in names.items()}


def check_terms(temperature: TemperatureConfig) -> None:
    """Raises ValueError, with the valid names, for a term that does not exist or belongs to another slot."""
    for projection, terms in temperature.scaled.items():
        for slot, name in terms.chosen.items():
            if name not in (valid := term_names()[slot]):
                guess, field = closest(name, valid), f"model.temperature.{projection}.{slot}"
                raise ValueError(f"{field}={name}: not one of the choices{guess}; valid: none, {', '.join(valid)}")


def variant(temperature: TemperatureConfig) -> str:
    """What is scaled, in a word: ``vanilla``; a rule, ``ssa``; its terms on other projections, ``ssa-query``; or
    projections with their terms, ``query-log``.

    A rule with changed terms has the name of the rule that it then is.
    """
    scaled: Chosen = {name: terms.chosen for name, terms in temperature.scaled.items()}
    if not scaled:
        return "vanilla"
    rules = {temperature.name: _rules().get(temperature.name, ("head", {})), **_rules()}
    whole = (name for name, (_, terms) in rules.items() if terms == scaled)
    other = (name for name, (_, terms) in rules.items() if all(chosen in terms.values() for chosen in scaled.values()))
    if name := next(whole, ""):
        words = [name]
    elif name := next(other, ""):
        words = [name, *scaled]
    else:
        words = [word for projection, terms in scaled.items() for word in (projection, *terms.values())]
    per = rules[name][0] if name else "head"
    return "-".join([*words, *([f"per-{temperature.per}"] if temperature.per != per else [])])
