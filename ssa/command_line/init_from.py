"""``init_from=MODEL``: the architecture of the pretrained model replaces the composed one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssa.command_line import conf_groups
from ssa.command_line.values import overridden
from ssa.config import validated
from ssa.config_errors import shown
from ssa.errors import UserError
from ssa.files import expanded
from ssa.model.config import ModelConfig
from ssa.pretrained import causal_lm
from ssa.pretrained.families import ARCHITECTURE
from ssa.pretrained.source import Pretrained, architecture, check_temperatures, describe, start_hash


def adopted(values: dict[str, Any], overrides: Sequence[str], choices: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the architecture of the pretrained model, from its config.json.

    Args:
        values: the composed config, as plain values; ``init_from`` names the model.
        overrides: as typed; they may not contradict the model.
        choices: the option of each config group.

    Raises:
        UserError: the model is not available, or a typed or chosen setting differs from it.
    """
    model, init_from = values.get("model"), values["init_from"]
    if not isinstance(init_from, str) or not init_from:
        raise UserError(f"init_from={shown(init_from)}: valid: a folder, or an id of the Hub")
    if not isinstance(model, dict):
        return values  # `parse` refuses it
    values = _with_whole_path(values)
    option = str(choices["model"])
    pretrained = describe(values["init_from"], hf=option == causal_lm.OPTION)
    extended: dict[str, Any] = {}
    for key in overridden(overrides):
        section, _, path = key.partition(".")
        if key in ("model/size", "model.size"):
            _check_size(model, str(choices["model/size"]), pretrained)
        elif key == "model.max_positions" and _extends(model, pretrained):
            extended["max_positions"] = model["max_positions"]
        elif section == "model" and path.split(".")[0] in ARCHITECTURE:
            _check_field(model, path.split("."), pretrained)
    _check_backbone(model, option, pretrained)
    fields = architecture(pretrained.model) | {"size": pretrained.model.size} | extended
    values = {**values, "model": {**model, **fields}, "init_hash": start_hash(values["init_from"])}
    try:
        described = validated(ModelConfig, values["model"])
    except UserError:
        return values  # `parse` refuses it
    check_temperatures(described, pretrained)
    return values


def _with_whole_path(values: dict[str, Any]) -> dict[str, Any]:
    """Resolve a folder in ``init_from`` and ``data.tokenizer``, so that the run id does not depend on its spelling."""
    init_from, data = values["init_from"], values.get("data")
    folder = expanded(init_from)
    if not folder.is_dir():
        return values
    whole = str(folder.resolve())
    if isinstance(data, dict) and data.get("tokenizer") == init_from:
        values = {**values, "data": {**data, "tokenizer": whole}}
    return {**values, "init_from": whole}


def _check_field(model: dict[str, Any], path: Sequence[str], pretrained: Pretrained) -> None:
    """Refuse ``model.FIELD=VALUE`` if the pretrained model has another value."""
    if not _agrees(model, path[0], pretrained):
        value, has = _at(model, path), _at(architecture(pretrained.model), path)
        raise UserError(f"model.{'.'.join(path)}={shown(value)}: init_from={pretrained.init_from} has {shown(has)}")


def _extends(model: dict[str, Any], pretrained: Pretrained) -> bool:
    """Whether the typed number of positions exceeds that of pretraining, which rotary positions allow."""
    typed, has = model.get("max_positions"), pretrained.model
    return has.positions == "rotary" and isinstance(typed, int) and typed > has.max_positions


def _check_size(model: dict[str, Any], option: str, pretrained: Pretrained) -> None:
    """Refuse ``model/size=OPTION`` if the pretrained model has another size."""
    fields = conf_groups.content("model/size", option) or model
    for field in ARCHITECTURE:
        if field in fields and not _agrees(model, field, pretrained):
            value, has = shown(model.get(field)), shown(architecture(pretrained.model)[field])
            raise UserError(
                f"model/size={option}: init_from={pretrained.init_from} has {field}={has}, not {value}; "
                "the size is the pretrained model's"
            )


def _check_backbone(model: dict[str, Any], option: str, pretrained: Pretrained) -> None:
    """Refuse ``model=OPTION`` of another family, chosen or default: its other settings would not fit."""
    if option == causal_lm.OPTION:
        return
    backbone = conf_groups.backbone(architecture(pretrained.model))
    if pretrained.model.hf_config is not None:
        raise UserError(
            f"model={option}: init_from={pretrained.init_from} is {pretrained.format.model_type} (model_type); "
            f"choose model={causal_lm.OPTION}"
        )
    if conf_groups.backbone(model) != backbone:
        fitting = conf_groups.models_with(backbone)
        choose = f"choose {' or '.join(f'model={name}' for name in fitting)}"
        choose = choose if fitting else "no model= option has this architecture"
        raise UserError(
            f"model={option}: init_from={pretrained.init_from} is {pretrained.format.model_type} (model_type); {choose}"
        )


def _agrees(model: dict[str, Any], field: str, pretrained: Pretrained) -> bool:
    """Whether the pretrained model has the same value of this field."""
    try:
        changed = validated(ModelConfig, {**pretrained.model.plain(), field: model.get(field)})
    except UserError:
        return False
    return field in model and architecture(changed) == architecture(pretrained.model)


def _at(values: Any, path: Sequence[str]) -> Any:
    for key in path:
        values = values.get(key) if isinstance(values, dict) else None
    return values
