"""Tokenizer and generation settings of a base model for its fine-tune's export: known keys with values of known types.

Everything else stays behind, above all what makes transformers run code (``auto_map``).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ssa.config_errors import shown
from ssa.files import parse_json
from ssa.pretrained.source import text_files

_TEMPLATE = "chat_template.jinja"


class _Generation(Extension):
    """The tag by which chat templates mark the model's own words."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _checked(template: str) -> str:
    """A chat template that parses, reads no other file, and names nothing internal to Python."""
    try:
        tree = Environment(extensions=[loopcontrols, _Generation]).parse(template)
    except (TemplateError, RecursionError) as error:
        raise ValueError(str(error)) from None
    names = [node.attr for node in tree.find_all(nodes.Getattr)]
    names += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    if any(name.startswith("__") for name in names):
        raise ValueError("names an internal attribute")
    if any(tree.find(kind) for kind in (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        raise ValueError("reads another file")
    return template


_Template = Annotated[str, AfterValidator(_checked)]


class _AddedToken(BaseModel):
    model_config = ConfigDict(extra="forbid")
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = False
    type: Literal["AddedToken"] = Field("AddedToken", alias="__type")


class _NamedTemplate(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    template: _Template


_Token = str | _AddedToken
_Id = Annotated[int, Field(ge=0)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


def _keys(kind: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), kind)


_TOKENS = {
    **_keys(_Token, "bos_token eos_token unk_token sep_token pad_token cls_token mask_token"),
    **_keys(list[_Token], "additional_special_tokens"),
}
_IDS = _keys(_Id | list[_Id], "bos_token_id eos_token_id pad_token_id")
_KINDS: dict[str, dict[str, Any]] = {
    "config.json": _IDS,
    "generation_config.json": {
        **_IDS,
        **_keys(bool, "do_sample early_stopping use_cache renormalize_logits remove_invalid_values _from_model_config"),
        **_keys(_Id, "max_length max_new_tokens min_length min_new_tokens num_beams num_return_sequences top_k"),
        **_keys(_Id, "no_repeat_ngram_size"),
        **_keys(_Number, "temperature top_p min_p typical_p epsilon_cutoff eta_cutoff length_penalty"),
        **_keys(_Number, "repetition_penalty"),
        **_keys(list[_Id], "suppress_tokens begin_suppress_tokens"),
        **_keys(list[str], "stop_strings"),
        **_keys(str, "transformers_version"),
    },
    "tokenizer_config.json": {
        **_TOKENS,
        **_keys(list[_Token] | dict[str, _Token], "extra_special_tokens"),
        **_keys(dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], _AddedToken], "added_tokens_decoder"),
        **_keys(Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")], "tokenizer_class"),
        **_keys(_Number, "model_max_length"),
        **_keys(Literal["left", "right"], "padding_side truncation_side"),
        **_keys(list[str], "model_input_names"),
        **_keys(Literal["strict", "replace", "ignore"], "errors"),
        **_keys(bool, "add_bos_token add_eos_token add_prefix_space clean_up_tokenization_spaces do_lower_case legacy"),
        **_keys(bool, "spaces_between_special_tokens split_special_tokens strip_accents use_default_system_prompt"),
        **_keys(_Template | list[_NamedTemplate], "chat_template"),
    },
    "special_tokens_map.json": _TOKENS,
}


def base_files(init_from: str) -> tuple[dict[str, Any], list[str]]:
    """What a fine-tune keeps of its base model's settings.

    Returns:
        The values of each JSON file by its name, the text of a chat template by its, and what was left out:
        ``FILE: KEYS``.  Of config.json, only the ids of special tokens are read.

    Raises:
        UserError: a file is damaged or not available.
    """
    kept: dict[str, Any] = {}
    left_out: list[str] = []
    for name, text in text_files(init_from, (*_KINDS, _TEMPLATE)).items():
        if name == _TEMPLATE:
            if _is_valid(_Template, text):
                kept[name] = text
            else:
                left_out.append(name)
            continue
        values, kinds = parse_json(text, f"{init_from}: {name}"), _KINDS[name]
        kept[name] = {key: value for key, value in values.items() if key in kinds and _is_valid(kinds[key], value)}
        lost = [key for key, value in values.items() if key not in kept[name] and value is not None]
        if lost and name != "config.json":
            printable = (key if key.isprintable() else ascii(key) for key in lost)
            left_out.append(f"{name}: {', '.join(map(shown, printable))}")
        if name == "tokenizer_config.json" and "auto_map" in lost:  # its class is not part of transformers
            kept[name]["tokenizer_class"] = "PreTrainedTokenizerFast"
    return kept, left_out


def _is_valid(kind: Any, value: Any) -> bool:
    try:
        TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except (ValidationError, ValueError):
        return False
    return True
