"""What a fine-tune's export keeps of a stranger's settings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ssa.errors import UserError
from ssa.pretrained.base_files import base_files

TOKEN = {"content": "</s>", "lstrip": False, "special": True, "__type": "AddedToken"}
TURNS = "{% for m in messages %}{% generation %}{{ m['content'] | trim }}{% endgeneration %}{% break %}{% endfor %}"
KEPT: dict[str, dict[str, Any]] = {
    "config.json": {"eos_token_id": [2, 3], "pad_token_id": 0},
    "generation_config.json": {"temperature": 0.7, "top_k": 50, "do_sample": True, "eos_token_id": 2},
    "tokenizer_config.json": {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": TOKEN,
        "added_tokens_decoder": {"2": TOKEN},
        "extra_special_tokens": {"image": "<image>"},
        "model_max_length": 1000000000000000019884624838656,
        "padding_side": "left",
        "chat_template": [{"name": "default", "template": TURNS}],
    },
    "special_tokens_map.json": {"eos_token": TOKEN, "additional_special_tokens": ["<a>", TOKEN]},
}


def write(folder: Path, files: dict[str, dict[str, Any]]) -> str:
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))
    return str(folder)


def test_known_settings_are_kept(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(TURNS)
    (tmp_path / "modeling.py").write_text("raise SystemExit")
    kept, left_out = base_files(write(tmp_path, KEPT))
    assert kept == {**KEPT, "chat_template.jinja": TURNS}
    assert left_out == []


LEFT_OUT: dict[str, list[tuple[str, Any]]] = {
    "config.json": [("eos_token_id", "2"), ("pad_token_id", -1), ("bos_token_id", True), ("auto_map", {"A": "a.B"})],
    "generation_config.json": [
        ("custom_generate", "folder"),
        ("temperature", math.nan),
        ("temperature", "0.7"),
        ("top_k", 0.5),
        ("eos_token_id", [[2]]),
        ("stop_strings", "x"),
    ],
    "tokenizer_config.json": [
        ("custom_pipelines", {"text": {"impl": "a.B"}}),
        ("tokenizer_file", "/home/me/tokenizer.json"),
        ("tokenizer_class", "../evil"),
        ("tokenizer_class", ["LlamaTokenizer"]),
        ("eos_token", 3),
        ("eos_token", {**TOKEN, "lstrip": "yes"}),
        ("eos_token", {**TOKEN, "code": "a.B"}),
        ("eos_token", "\ud83c"),
        ("added_tokens_decoder", {"x": TOKEN}),
        ("model_max_length", math.inf),
        ("padding_side", "up"),
        ("chat_template", 3),
        ("chat_template", "{% include 'secrets' %}"),
        ("chat_template", "{{ messages.__class__ }}"),
        ("chat_template", "{{ messages | attr('__class__') }}"),
        ("chat_template", "{% if %}"),
        ("chat_template", "{{" + "(" * 5000),
    ],
    "special_tokens_map.json": [("auto_map", {"AutoTokenizer": "a.B"}), ("additional_special_tokens", "<a>")],
}


@pytest.mark.parametrize(("name", "key", "value"), [(n, k, v) for n, found in LEFT_OUT.items() for k, v in found])
def test_anything_else_is_left_out(tmp_path: Path, name: str, key: str, value: Any) -> None:
    kept, left_out = base_files(write(tmp_path, {**KEPT, name: {**KEPT[name], key: value}}))
    assert kept == {**KEPT, name: {k: v for k, v in KEPT[name].items() if k != key}}
    assert left_out == ([] if name == "config.json" else [f"{name}: {key}"])


def test_keys_that_cannot_be_printed(tmp_path: Path) -> None:
    _, left_out = base_files(write(tmp_path, {"generation_config.json": {"\ud83c": 1, "a\nb": 2, "k" * 99: 3}}))
    assert left_out == [f"generation_config.json: '\\ud83c', 'a\\nb', {'k' * 57}..."]


def test_a_class_that_transformers_lacks_is_replaced(tmp_path: Path) -> None:
    foreign = {**KEPT["tokenizer_config.json"], "auto_map": {"AutoTokenizer": "a.B"}, "tokenizer_class": "B"}
    kept, left_out = base_files(write(tmp_path, {"tokenizer_config.json": foreign}))
    assert kept["tokenizer_config.json"] == {
        **KEPT["tokenizer_config.json"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    assert left_out == ["tokenizer_config.json: auto_map"]


@pytest.mark.parametrize("content", [b"[" * 20_000, b"[]", b"\xff", b"{", b"null"])
def test_a_damaged_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "generation_config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"generation_config\.json is damaged"):
        base_files(str(tmp_path))
