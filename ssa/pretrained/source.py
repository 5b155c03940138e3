"""A pretrained model by its name in ``init_from``: where its files are, and what its config.json says it is.

Nothing heavy is imported: a mistyped name is refused at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssa.config import upgraded, validated
from ssa.config_errors import shown
from ssa.errors import UserError
from ssa.files import cache_root, hash_of, hash_of_file, parse_json
from ssa.model.config import PROJECTIONS, SLOTS, ModelConfig
from ssa.pretrained.families import ARCHITECTURE, FAMILIES, Family

SSA_TYPE = "ssa"  # model_type of this project's own exports
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Pretrained:
    """What a config.json describes.

    Attributes:
        init_from: its name.
        model_type: as in config.json.
        family: whose tensors its files have; None: our own.
        model: its architecture with its vocab_size and, of our own export, its temperatures.
    """

    init_from: str
    model_type: str
    family: Family | None
    model: ModelConfig

    @property
    def has_temperatures(self) -> bool:
        """Whether its files hold temperatures, too."""
        return bool(self.model.temperature.scaled)

    @property
    def architecture(self) -> str:
        """The class of its language model."""
        return self.family.architecture if self.family else "SSAForCausalLM"

    @property
    def output_matrix(self) -> str:
        """The name of the tensor that a file with a tied one may have besides the embedding."""
        return f"{self.family.modules[-1].theirs[0]}.weight" if self.family else "model.head.weight"

    @property
    def prefix(self) -> str:
        """What names of tensors may lack."""
        return self.family.prefix if self.family else ""

    @property
    def renamed(self) -> Mapping[str, str]:
        """Other names of tensors."""
        return self.family.renamed if self.family else {}

    @property
    def leftovers(self) -> str:
        """A pattern for tensors, less the prefix, that nothing reads."""
        return self.family.leftovers if self.family else ""


def describe(init_from: str) -> Pretrained:
    """What ``init_from`` is, by its config.json alone.

    Raises:
        UserError: there is no config.json to be had, it is damaged, or asks for something that this project has not.
    """
    config = _json_of(init_from, "config.json")
    model_type = config.get("model_type")
    family = next((family for family in FAMILIES if family.model_type == model_type), None)
    if family is None and model_type != SSA_TYPE:
        valid = ", ".join([*(family.model_type for family in FAMILIES), SSA_TYPE])
        raise UserError(
            f"init_from={init_from}: config.json: model_type={shown(model_type)}: not supported; valid: {valid}"
        )
    try:
        fields = family.to_model(config) if family else _exported(config)
    except UserError as error:
        raise UserError(f"init_from={init_from}: {error}") from None
    try:
        model = validated(ModelConfig, {"name": model_type, **fields, "size": size_label(init_from)})
    except UserError as error:
        what = "" if family else "ssa is damaged, or of another version: "
        raise UserError(f"init_from={init_from}: config.json: {what}{error}") from None
    return Pretrained(init_from, str(model_type), family, model)


def weight_files(init_from: str) -> list[Path]:
    """Its safetensors files, from the Hub or in its folder.

    Raises:
        UserError: there are none, a part is missing, or they cannot be had.
    """
    from ssa.hub_client import HubUnreachable

    unreachable: HubUnreachable | None = None
    try:
        if single := _file(init_from, _SINGLE):
            return [single]
    except HubUnreachable as error:  # its parts may have been kept
        unreachable = error
    try:
        index = _json_of(init_from, _INDEX)
    except HubUnreachable:
        raise unreachable or HubUnreachable(f"init_from={init_from}: {_INDEX} cannot be fetched") from None
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or any(Path(str(name)).name != name for name in names.values()):
        raise UserError(f"init_from={init_from}: {_INDEX} is damaged: no weight_map of tensors to file names")
    found = {name: _file(init_from, name) for name in sorted(set(names.values()))}
    absent = [name for name, path in found.items() if path is None]
    if absent:
        raise UserError(
            f"init_from={init_from}: {absent[0]} is missing, which {_INDEX} names "
            f"({len(absent)} of {len(found)} files are)"
        )
    return [path for path in found.values() if path is not None]


def small_files(init_from: str, names: Sequence[str]) -> dict[str, str]:
    """The contents of those of some text files that it has, by their names.

    Raises:
        UserError: they cannot be had, or are no text.
    """
    contents: dict[str, str] = {}
    for name in names:
        path = _file(init_from, name)
        try:
            contents |= {name: path.read_text(encoding="utf-8")} if path is not None else {}
        except UnicodeDecodeError as error:
            raise UserError(f"{init_from}: {name} is damaged: {error}") from None
    return contents


def weights_hash(init_from: str) -> str:
    """A hash of all its safetensors files.

    Raises:
        UserError: as `weight_files`.
    """
    return hash_of([[hash_of_file(path, cache_root(None)) for path in weight_files(init_from)]])


def size_label(init_from: str) -> str:
    """The last part of its name, as a value of ``model.size``."""
    path = Path(init_from).expanduser()
    name = path.name or path.resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-") or "pretrained"


def check_architecture(model: ModelConfig, pretrained: Pretrained) -> None:
    """Refuses to load it into another architecture.

    Raises:
        UserError: naming the first field that differs.
    """
    wanted, found = architecture(model), architecture(pretrained.model)
    for field, value in found.items():
        if wanted[field] != value and not _may_differ(field, wanted, found):
            raise UserError(
                f"model.{field}={shown(wanted[field])}: init_from={pretrained.init_from} has {shown(value)}"
            )


def _may_differ(field: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """An absent vocab_size is the pretrained model's; rotary positions go on beyond those of pre-training."""
    further = field == "max_positions" and found["positions"] == "rotary" and wanted[field] > found[field]
    return further or (field == "vocab_size" and wanted[field] is None)


def architecture(model: ModelConfig) -> dict[str, Any]:
    """The fields that a pretrained model decides, as plain values."""
    plain = model.plain()
    return {field: plain[field] for field in ARCHITECTURE}


def check_rule(model: ModelConfig, pretrained: Pretrained) -> None:
    """Refuses to load temperatures into others: all must be equal but where they start.

    Raises:
        UserError: naming the first setting that differs.
    """
    if not pretrained.has_temperatures:
        return
    name = pretrained.model.temperature.name
    choose = f"choose its rule, model/temperature={name}"
    if not model.temperature.scaled:
        raise UserError(
            f"model.temperature={model.temperature.name}: init_from={pretrained.init_from} has temperatures; {choose}"
        )
    wanted, found = _rule(model), _rule(pretrained.model)
    for field, value in found.items():
        if wanted[field] != value:
            raise UserError(
                f"model.temperature.{field}={shown(wanted[field])}: init_from={pretrained.init_from} "
                f"has {shown(value)}; {choose}"
            )


def _rule(model: ModelConfig) -> dict[str, Any]:
    """What shapes the temperatures' parameters or their function, by its path below ``model.temperature``."""
    values = model.temperature.plain()
    for label in ("name", "alpha_init", "beta_init", "slope_init", "ssmax_init", *PROJECTIONS):
        del values[label]
    words = {
        f"{name}.{slot}": getattr(model.temperature.scaled.get(name), slot, "none")
        for name in PROJECTIONS
        for slot in SLOTS
    }
    values["mlp_hidden"] = model.temperature.hidden_width(model.d_model)
    return words | values


def _exported(config: dict[str, Any]) -> dict[str, Any]:
    """The model in the config.json of an export of this project."""
    if not isinstance(config.get("ssa"), dict):
        raise UserError("config.json: ssa: not set; it describes a model with temperatures")
    vocab_size = config["ssa"].get("vocab_size") or config.get("vocab_size")
    if vocab_size is None:
        raise UserError("config.json: vocab_size: not set")
    return {**upgraded(config["ssa"], "model."), "vocab_size": vocab_size}


def _json_of(init_from: str, filename: str) -> dict[str, Any]:
    path = _file(init_from, filename)
    if path is None:
        raise UserError(f"init_from={init_from}: {_why_absent(init_from, filename)}")
    try:
        return parse_json(path.read_bytes(), f"init_from={init_from}: {filename}")
    except OSError as error:
        raise UserError(f"init_from={init_from}: {filename} cannot be read ({error.strerror})") from None


def _file(init_from: str, filename: str) -> Path | None:
    """A file of the model, None where there is none."""
    folder = local_folder(init_from)
    if folder is not None:
        return folder / filename if (folder / filename).is_file() else None
    from ssa.hub_client import NotInRepository, download

    try:
        return download(init_from, filename, "model", field="init_from")
    except NotInRepository:
        return None


def local_folder(init_from: str) -> Path | None:
    """The folder that it is; None for an id of the Hub.

    Raises:
        UserError: there is no such folder.
    """
    folder = Path(init_from).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"init_from={init_from}: a file; valid: the folder that it is in, or an id of the Hub")
    if init_from.startswith((".", "/", "~")) or init_from.count("/") > 1:
        raise UserError(f"init_from={init_from}: no such folder")
    return None


def _why_absent(init_from: str, filename: str) -> str:
    folder = Path(init_from).expanduser()
    if filename == _INDEX:
        return (
            f"no {_SINGLE}, and no {_INDEX}; pytorch_model.bin and the like are not read: "
            "have transformers save the model again, model.save_pretrained(FOLDER)"
        )
    if (folder / "config.yaml").is_file():
        return f"a run folder; export it first: python export.py run={init_from} to=FOLDER"
    return f"no {filename}; valid: a model in Hugging Face's format, a folder or an id of the Hub"
