"""The help page of train.py: config groups, keys and flags.

A key has its type, its default and one line: its comment in ``conf/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from ssa.command_line import conf_groups
from ssa.command_line.settings import closing_sections, entry, kind_of, limits_of, typed
from ssa.config import Config
from ssa.config_errors import closest
from ssa.errors import UserError
from ssa.model.config import PROJECTIONS, SLOTS
from ssa.paths import CONF, command
from ssa.rule_names import term_names

FLAGS = {
    "--help, -h": "this page; --help optim: one group or key",
    "--multirun, -m": "run every combination of comma-separated values: -m model=gpt2,ssa_gpt2 seed=0,1,2",
    "--cfg job --resolve": "print the composed config, with all keys, and exit",
}
_EXAMPLES = (
    "model=ssa_gpt2 data=wikitext",
    "model=gpt2 scale=smoke logger=none",
    "scale=gpu model/size=micro trainer.steps=500",
    "scale=gpu plan=true plan.device=h100",
    "model/temperature=ssa model.temperature.value=null",
    "-m model=gpt2,ssa_gpt2 seed=0,1,2",
    "model=ssa_llama init_from=HuggingFaceTB/SmolLM2-135M optim.train=temperature",
    "resume=outputs/main/RUN_ID",
)
_FILES = {
    "conf/config.yaml": "the default run",
    "conf/": "GROUP/OPTION.yaml: the options above",
    "ssa/config.py": "all keys with their types and valid values",
    "ssa/model/": "the transformer, attention and its temperatures",
    "ssa/text/": "corpora, tokenizers, the token cache, batches",
    "ssa/planning/": "plan=true: parameters, memory, FLOPs, time and disk of a run",
    "ssa/training/": "the training loop, optimizer and learning-rate schedule",
    "ssa/pretrained/": "init_from=: weights from the Hugging Face Hub",
    "ssa/record/": "run folders, checkpoints, metrics, Weights & Biases",
    "ssa/launch/": "hydra/launcher=: runs on a cluster",
}
_CHOSEN = {"name", "size", "scale", "init_hash"}  # by an option, or by the program
_LINE = re.compile(r"(?P<indent> *)(?P<name>\w+): *(?P<value>[^#]*?) *(?:# *(?P<comment>.*))?")


def help_page(program: str, purpose: str, chosen: str = "") -> str:
    """All groups, keys and flags, or those of one group, section or key.

    Raises:
        UserError: there is none of this name.
    """
    keys, groups = dict(_keys()), conf_groups.options()
    section = chosen.replace("/", ".").rstrip("=")
    shown = [key for key in keys if not section or key == section or key.startswith(f"{section}.")]
    options = [group for group in groups if not section or group.replace("/", ".") == section]
    if not shown and not options:
        sections = dict.fromkeys(key.rpartition(".")[0] for key in keys if "." in key)
        guess = closest(section, [*sections, *keys])
        raise UserError(
            f"--help {chosen}: no such group or key{guess}; valid: {', '.join(sections)}, or a key of these"
        )
    lines = [
        *_option_lines({group: groups[group] for group in options}),
        *_key_lines({key: keys[key] for key in shown}),
    ]
    if chosen:
        return "\n".join(lines)
    flags = ["flags", *(line for flag, text in FLAGS.items() for line in entry(flag, text))]
    usage = f"usage: {command(program)} [GROUP=OPTION ...] [KEY=VALUE ...] [FLAG ...]"
    return "\n".join([purpose, "", usage, "", *lines, "", *flags, *closing_sections(program, _EXAMPLES, _FILES)])


def _option_lines(groups: Mapping[str, Mapping[str, str]]) -> list[str]:
    lines, defaults = [], conf_groups.defaults()
    for group, choices in groups.items():
        lines.append(f"{group}=  (default: {defaults.get(group, 'set by model= or scale=')})")
        lines += [line for name, text in choices.items() for line in entry(name, text)]
    return lines


def _key_lines(keys: Mapping[str, Mapping[str, Any]]) -> list[str]:
    described, defaults, sections = descriptions(), _defaults(), dict[str, list[str]]()
    for key, schema in keys.items():
        notes = "; ".join([*limits_of(schema), *([f"default: {defaults[key]}"] if key in defaults else [])])
        section = "model.temperature" if key.startswith("model.temperature.") else key.partition(".")[0] * ("." in key)
        of = {"": "", "data": " of data (defaults of data=pydocs)"}.get(section, f" of {section}")
        lines = sections.setdefault(section, ["", f"keys{of}"])
        lines += entry(f"{key}={kind_of(schema)}", described[key] + (f" ({notes})" if notes else ""))
    return [line for lines in sections.values() for line in lines]


def descriptions() -> dict[str, str]:
    """The comments behind the keys in ``conf/``, by dotted key; the first file that has one counts."""
    found: dict[str, str] = {}
    files = sorted(CONF.rglob("*.yaml"), key=lambda file: (file.parent.name == "scale", file))
    for file in files:
        text = file.read_text(encoding="utf-8")
        package = re.match(r"# @package (\w+)", text)
        folder = [] if file.parent == CONF else [*file.parent.relative_to(CONF).parts]
        path = {0: [] if package and package[1] == "_global_" else [package[1]] if package else folder}
        for line in text.splitlines():
            if not (match := _LINE.fullmatch(line)):
                continue
            depth = len(match["indent"])
            key = [*path.get(depth, []), match["name"]]
            path[depth + 2] = key
            if match["comment"]:
                found.setdefault(".".join(key), match["comment"])
    for projection in PROJECTIONS:
        for slot in SLOTS:
            found[f"model.temperature.{projection}.{slot}"] = f"{slot} term of the {projection} temperature"
    return found


def _keys() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The JSON schema of each value, by dotted key."""
    root = TypeAdapter(Config).json_schema()

    def walk(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, schema in section["properties"].items():
            kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
            inner = root["$defs"].get(kinds[0].get("$ref", "").rpartition("/")[2])
            if inner is not None:
                yield from walk(inner, f"{prefix}{name}.")
            elif name in SLOTS:
                yield prefix + name, {"enum": ["none", *term_names()[name]], "optional": False}
            elif name not in _CHOSEN:
                yield prefix + name, {**kinds[0], "optional": len(kinds) < len(schema.get("anyOf", [schema]))}

    return walk(root, "")


def _defaults() -> dict[str, str]:
    """The values of ``python train.py`` without arguments, as typed, by dotted key."""

    def walk(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
        for name, value in values.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, typed(value)

    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain: Any = OmegaConf.to_container(compose("config"), resolve=True)
    return dict(walk(plain, ""))
