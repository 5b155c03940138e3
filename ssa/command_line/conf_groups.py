"""The config groups in ``conf/``, and a user's options for them in the folder of ``--config-dir``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ssa.config import validated
from ssa.errors import UserError
from ssa.model.config import ModelConfig
from ssa.paths import CONF

_SIZES = {"n_layer": "L", "d_model": "d", "n_head": "h", "n_kv_head": "kv", "head_dim": "hd", "d_ff": "ff"}
_own: Path | None = None


def add_own(folder: str | None) -> None:
    """Also read the options in a user's folder, in place of an earlier one; None: only those in ``conf/``."""
    global _own
    _own = None if folder is None else Path(folder).resolve()


def is_own(group: str, option: str) -> bool:
    """Whether an option is the user's."""
    return _own is not None and _file(group, option).is_relative_to(_own)


def options() -> dict[str, dict[str, str]]:
    """Group -> option -> one-line description: the first comment of its file, except ``# @`` directives.

    Files named ``_*`` are shared settings for other files to build on, not options.
    """
    groups: dict[str, dict[str, str]] = {}
    for file in sorted(CONF.rglob("*.yaml")):
        if file.parent != CONF and not file.name.startswith("_"):
            groups.setdefault(file.parent.relative_to(CONF).as_posix(), {})[file.stem] = _description(file)
    for group, found in groups.items():
        for file in sorted((_own / group).glob("[!_]*.yaml") if _own else ()):
            found.setdefault(file.stem, _description(file))
    return groups


def _file(group: str, option: str) -> Path:
    """The file of an option, which may not exist; those in ``conf/`` have precedence, as in Hydra."""
    paths = [folder / group / f"{option}.yaml" for folder in (CONF, _own) if folder]
    return next((path for path in paths if path.is_file()), paths[0])


def backbone(fields: Mapping[str, Any]) -> list[Any]:
    """The fields of a model that differ between GPT-2, GPT-NeoX and Llama."""
    return [fields.get(field) for field in ("positions", "norm", "gated_mlp")]


def models_with(wanted: list[Any]) -> list[str]:
    """The options of ``model=`` with a backbone."""
    return [name for name in options()["model"] if backbone(dict(_entries(name))) == wanted]


def check_size(model: Mapping[str, Any], size: str) -> None:
    """Refuse a published model's size with another backbone, whose parameter count and rotation would differ.

    Raises:
        UserError: the description of the size names an option of ``model=`` with another backbone.
    """
    sizes = options()["model/size"]
    if owner := re.search(r"\(model=(\w+) only\)", sizes.get(size, "")):
        needed = backbone(dict(_entries(owner[1])))
        if backbone(model) != needed:
            only = " or ".join(f"model={name}" for name in models_with(needed))
            valid = ", ".join(name for name, text in sizes.items() if " only)" not in text)
            raise UserError(f"model/size={size}: only with {only}; valid with model={model['name']}: {valid}")


def size_name(model: Mapping[str, Any], choices: Mapping[str, Any]) -> str:
    """The option of ``model/size=``, or the sizes themselves, such as ``L2-d128``, where they are others."""
    option = str(choices["model/size"])
    declared = dict(_entries(str(choices["model"]))) | content("model/size", option)
    try:
        own = validated(ModelConfig, model)
        named = validated(ModelConfig, {**model, **{field: declared.get(field) for field in _SIZES}})
    except UserError:
        return option  # `parse` refuses it
    if all(getattr(own, field) == getattr(named, field) for field in _SIZES):
        return option
    shown = [field for field in _SIZES if _SIZES[field] in "Ld" or model.get(field) != declared.get(field)]
    return "-".join(f"{_SIZES[field]}{getattr(own, field)}" for field in shown)


def content(group: str, option: str) -> dict[str, Any]:
    """What the file of an option sets; empty if Hydra found it elsewhere, through ``hydra.searchpath``."""
    file = _file(group, option)
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}


def _entries(option: str) -> Iterator[tuple[str, Any]]:
    """The settings of ``model=OPTION``, after those it inherits."""
    entries = content("model", option)
    for parent in entries.pop("defaults", []):
        if isinstance(parent, str) and parent != "_self_":
            yield from _entries(parent)
    yield from entries.items()


def defaults() -> dict[str, Any]:
    """The default option of each group."""
    entries = content("", "config")["defaults"]
    return {
        group: "none" if option is None else option
        for entry in entries
        if isinstance(entry, dict)
        for group, option in entry.items()
    }


def _description(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.startswith("#"):
                break
            if not line.startswith("# @"):
                return line.lstrip("# ").rstrip()
    return ""
