"""Pretrained models by name (``init_from``): their files and their architecture.

torch is not imported, so that a mistyped name is refused at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssa.config import upgraded, validated
from ssa.config_errors import shown
from ssa.errors import UserError
from ssa.files import cache_root, expanded, hash_of, hash_of_file, parse_json, refuse_lfs_pointer
from ssa.hub_client import HubUnreachable, NotInRepository, download
from ssa.model.config import PROJECTIONS, SLOTS, ModelConfig
from ssa.model.stored_sizes import EMBEDDING, wrong_size
from ssa.paths import command
from ssa.pretrained import causal_lm
from ssa.pretrained.families import ARCHITECTURE, FAMILIES, CheckpointFormat, Family
from ssa.pretrained.remote_code import ARCHITECTURE as SSA_ARCHITECTURE
from ssa.pretrained.remote_code import MODEL_TYPE
from ssa.pretrained.tensor_headers import tensor_headers
from ssa.rule_names import check_terms

SSA = CheckpointFormat(model_type=MODEL_TYPE, architecture=SSA_ARCHITECTURE, head="model.head.weight")
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model, as described by its config.json.

    Attributes:
        init_from: its name.
        format: of its checkpoint: a `Family`, `SSA`, or any of transformers.
        model: architecture, vocab_size and, in this project's own format, temperatures.
    """

    init_from: str
    format: CheckpointFormat
    model: ModelConfig

    @property
    def has_temperatures(self) -> bool:
        return bool(self.model.temperature.scaled)


def describe(init_from: str, hf: bool = False) -> Pretrained:
    """The model named by ``init_from``, from its config.json; the tensors in a local folder must agree with it.

    ``hf``: as a model of transformers, also if this project's own transformer has its architecture.

    Raises:
        UserError: config.json is not available, is damaged, or describes an unsupported model, or one of other sizes
            than the folder holds.
    """
    config = _read_json(init_from, "config.json")
    model_type = config.get("model_type")
    formats: tuple[CheckpointFormat, ...] = (*FAMILIES, SSA)
    found = next((known for known in formats if known.model_type == model_type), None)
    if hf and found is SSA:
        raise UserError(f"init_from={init_from}: has temperatures of its own; choose model=ssa_gpt2, for example")
    if hf or found is None or temperature_files(init_from, config):
        return _of_transformers(init_from, config, ", ".join(known.model_type for known in formats))
    try:
        fields = found.to_model(config) if isinstance(found, Family) else _exported(config)
    except UserError as error:
        raise UserError(f"init_from={init_from}: {error}") from None
    if local_folder(init_from) is not None:
        check_sizes(init_from, found, fields)
    try:
        model = validated(ModelConfig, {"name": model_type, **fields, "size": size_label(init_from)})
        check_terms(model.temperature)
    except (UserError, ValueError) as error:
        what = "ssa is damaged or from another version: " if found is SSA else ""
        raise UserError(f"init_from={init_from}: config.json: {what}{error}") from None
    return Pretrained(init_from, found, model)


def _of_transformers(init_from: str, config: dict[str, Any], own: str) -> Pretrained:
    """Any causal language model of transformers; ``own``: the types that need no transformers."""
    kind = shown(config.get("model_type"))
    causal_lm.check_available(f"init_from={init_from}: config.json: model_type={kind}", f"; without it: {own}")
    try:
        fields = causal_lm.fields_of(config)
        if files := temperature_files(init_from, config):
            fields["temperature"] = parse_json(files[0].read_bytes(), files[0].name).get("temperature")
        model = validated(ModelConfig, {"name": causal_lm.OPTION, **fields, "size": size_label(init_from)})
        check_terms(model.temperature)
    except (UserError, ValueError) as error:
        raise UserError(f"init_from={init_from}: {error}") from None
    form = CheckpointFormat(model_type=config["model_type"], architecture=str(config.get("architectures")))
    return Pretrained(init_from, form, model)


def temperature_files(init_from: str, config: Mapping[str, Any] | None = None) -> list[Path]:
    """The files of `ssa.save` beside a model: config and tensors; none if it has no temperatures.

    ``config``: its config.json, which says so in a repository of the Hub.
    """
    if local_folder(init_from) is None:
        config = config or _read_json(init_from, "config.json")
        if "AdaptedModel" not in str(config.get("auto_map")):
            return []
    found = [_file(init_from, name) for name in ("ssa_adapter.json", "ssa_adapter.safetensors")]
    return [path for path in found if path is not None]


def check_sizes(init_from: str, form: CheckpointFormat, sizes: Mapping[str, Any]) -> None:
    """Refuse sizes of the config, fields of `ModelConfig`, that differ from those of the stored tensors."""
    files = weight_files(init_from)
    headers = (one for file in files for one in tensor_headers(file, f"init_from={init_from}: {file.name}"))
    shapes = {form.parameter(header.name): header.shape for header in headers}
    where = files[0].name if len(files) == 1 else f"the {len(files)} safetensors files"
    if len(shapes.get(EMBEDDING, ())) != 2:
        raise UserError(f"init_from={init_from}: {where}: no token embedding of a {form.architecture}")
    if wrong := wrong_size(sizes, shapes):
        said = " x ".join(f"{form.config_key(field)}={value}" for field, value in wrong.fields.items())
        raise UserError(f"init_from={init_from}: config.json: {said}: {where} has {wrong.stored}")


def weight_files(init_from: str) -> list[Path]:
    """The model's safetensors files, from the Hub or its folder.

    Raises:
        UserError: there are none, a shard is missing, or they are not available.
    """
    unreachable: HubUnreachable | None = None
    try:
        if single := _file(init_from, _SINGLE):
            return [single]
    except HubUnreachable as error:  # shards may be cached
        unreachable = error
    try:
        index = _read_json(init_from, _INDEX)
    except HubUnreachable:
        raise unreachable or HubUnreachable(f"init_from={init_from}: {_INDEX} cannot be fetched") from None
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not all(map(_is_file_name, names.values())):
        raise UserError(f"init_from={init_from}: {_INDEX} is damaged: no weight_map of tensors to file names")
    found = {name: _file(init_from, name) for name in sorted(set(names.values()))}
    absent = [name for name, path in found.items() if path is None]
    if absent:
        raise UserError(
            f"init_from={init_from}: {absent[0]} is missing, a shard in {_INDEX} "
            f"({len(absent)} of {len(found)} are missing)"
        )
    return [path for path in found.values() if path is not None]


def text_files(init_from: str, names: Sequence[str]) -> dict[str, str]:
    """The contents of text files of the model by name; files that it does not have are left out."""
    contents: dict[str, str] = {}
    for name in names:
        try:
            if path := _file(init_from, name):
                contents[name] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{init_from}: {name} is damaged: {error}") from None
        except OSError as error:
            raise UserError(f"{init_from}: {name} cannot be read ({error.strerror})") from None
    return contents


def weights_hash(init_from: str) -> str:
    """SHA-256 over all safetensors files of the model, see `weight_files`, and over its temperatures' files."""
    files = [*weight_files(init_from), *temperature_files(init_from)]
    return hash_of([[hash_of_file(path, cache_root(None)) for path in files]])


def start_hash(init_from: str) -> str | None:
    """A hash of the weights and tokenizer in a folder, wherever it is; None for a Hub id."""
    if local_folder(init_from) is None:
        return None
    tokenizer = text_files(init_from, ["tokenizer.json"]).get("tokenizer.json")
    return hash_of([weights_hash(init_from), tokenizer])


def size_label(init_from: str) -> str:
    """The last part of a model's name, as a value of ``model.size``."""
    path = expanded(init_from)
    name = path.name or path.resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-") or "pretrained"


def check_architecture(model: ModelConfig, pretrained: Pretrained) -> None:
    """Refuse a model of another architecture than the pretrained one, with the first field that differs."""
    wanted, found = architecture(model), architecture(pretrained.model)
    for field, value in found.items():
        unset = field == "vocab_size" and wanted[field] is None
        extends = field == "max_positions" and found["positions"] == "rotary" and wanted[field] > value
        if field == "hf_config" and wanted[field] and value and wanted[field] != value:
            _check_same_config(pretrained.init_from, json.loads(wanted[field]), json.loads(value))
        if wanted[field] != value and not (unset or extends):
            raise UserError(
                f"model.{field}={shown(wanted[field])}: init_from={pretrained.init_from} has {shown(value)}"
            )


def _check_same_config(init_from: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise UserError(
                f"init_from={init_from}: config.json: {key}={shown(found.get(key))}; the run has "
                f"{shown(wanted.get(key))}: restore it"
            )


def architecture(model: ModelConfig) -> dict[str, Any]:
    """The fields that a pretrained model determines, as plain values."""
    plain = model.plain()
    return {field: plain[field] for field in ARCHITECTURE}


def check_temperatures(model: ModelConfig, pretrained: Pretrained) -> None:
    """Refuse a model of other temperatures than the pretrained one; start values may differ."""
    if not pretrained.has_temperatures:
        return
    choose = f"choose its rule, model/temperature={pretrained.model.temperature.name}"
    if not model.temperature.scaled:
        raise UserError(
            f"model.temperature={model.temperature.name}: init_from={pretrained.init_from} has temperatures; {choose}"
        )
    wanted, found = _temperature_settings(model), _temperature_settings(pretrained.model)
    for field, value in found.items():
        if wanted[field] != value:
            raise UserError(
                f"model.temperature.{field}={shown(wanted[field])}: init_from={pretrained.init_from} "
                f"has {shown(value)}; {choose}"
            )


def _temperature_settings(model: ModelConfig) -> dict[str, Any]:
    """Settings that affect the temperatures' parameters or function, by path below ``model.temperature``."""
    values = model.temperature.plain()
    for label in ("name", "alpha_init", "beta_init", "slope_init", "ssmax_init", *PROJECTIONS):
        del values[label]
    values["mlp_hidden"] = model.temperature.hidden_width(model.d_model)
    scaled = model.temperature.scaled
    terms = {f"{name}.{slot}": getattr(scaled.get(name), slot, "none") for name in PROJECTIONS for slot in SLOTS}
    return terms | values


def _exported(config: dict[str, Any]) -> dict[str, Any]:
    """`ModelConfig` fields in a config.json of this project's own format."""
    if not isinstance(config.get("ssa"), dict):
        raise UserError("config.json: ssa: not set; it describes a model with temperatures")
    vocab_size = config["ssa"].get("vocab_size") or config.get("vocab_size")
    if vocab_size is None:
        raise UserError("config.json: vocab_size: not set")
    return {**upgraded(config["ssa"], "model."), "vocab_size": vocab_size}


def _read_json(init_from: str, filename: str) -> dict[str, Any]:
    if path := _file(init_from, filename):
        try:
            return parse_json(path.read_bytes(), f"init_from={init_from}: {filename}")
        except OSError as error:
            raise UserError(f"init_from={init_from}: {filename} cannot be read ({error.strerror})") from None
    if filename == _INDEX:
        reason = (
            f"no {_SINGLE}, and no {_INDEX}; pytorch_model.bin and similar formats are not supported: "
            "convert with transformers, model.save_pretrained(FOLDER)"
        )
    elif (expanded(init_from) / "ssa_adapter.json").is_file():
        reason = "temperatures alone; ssa.load(base_model, FOLDER) puts them onto their base, export.py as=full with it"
    elif (expanded(init_from) / "config.yaml").is_file():
        reason = f"a run folder; export it first: {command('export.py')} run={init_from} to=FOLDER"
    else:
        reason = f"no {filename}; valid: a Hugging Face model, a folder or a Hub id"
    raise UserError(f"init_from={init_from}: {reason}")


def _file(init_from: str, filename: str) -> Path | None:
    """The path of a file of the model; None if it does not have the file."""
    folder = local_folder(init_from)
    if folder is not None:
        path = folder / filename
        refuse_lfs_pointer(path, f"init_from={init_from}: {filename}")
        return path if path.is_file() else None
    try:
        return download(init_from, filename, "model", field="init_from")
    except NotInRepository:
        return None


def _is_file_name(name: Any) -> bool:
    return (
        isinstance(name, str)
        and name != ""
        and name.isprintable()
        and Path(name).name == name
        and len(name.encode()) < 256
    )


def local_folder(init_from: str) -> Path | None:
    """The folder of a local model, which must exist; None for a Hub id."""
    folder = expanded(init_from)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"init_from={init_from}: is a file; valid: its folder, or a Hub id")
    if init_from.startswith((".", "/", "~")) or init_from.count("/") > 1:
        raise UserError(f"init_from={init_from}: no such folder")
    return None
