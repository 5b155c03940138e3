"""One-line errors for damaged, unsupported or unavailable pretrained models."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrained_folders import ids, small, tensors_of, write_export, write_files, write_model
from safetensors.torch import save_file

from ssa.config_errors import shown
from ssa.errors import UserError
from ssa.hub_client import HubUnreachable, NotInRepository
from ssa.model.config import ModelConfig
from ssa.pretrained import source
from ssa.pretrained.load import check_vocabulary, from_pretrained, load_pretrained
from ssa.pretrained.source import describe, size_label
from ssa.text.tokenization import Tokenizer, train_bpe


def refused(folder: Path, **fields: Any) -> str:
    """The error message without its prefix."""
    with pytest.raises(UserError) as error:
        from_pretrained(str(folder), **fields)
    message = str(error.value)
    assert message.startswith(f"init_from={folder}: ")
    return message.removeprefix(f"init_from={folder}: ")


# What is wrong with names and files


def test_a_run_folder_must_be_exported(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {}")
    assert refused(tmp_path) == f"a run folder; export it first: python export.py run={tmp_path} to=FOLDER"


@pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "~/no-such-folder-here", "/no-such-folder-here"])
def test_a_path_that_does_not_exist(name: str) -> None:
    with pytest.raises(UserError, match=f"^init_from={name}: no such folder$"):
        describe(name)


def edited(**changes: Any) -> Callable[[Path], None]:
    """Changes values of config.json."""

    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def content(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def changed(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """Changes the tensors in place."""

    def edit(folder: Path) -> None:
        tensors = tensors_of(folder)
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def sharded(folder: Path) -> None:
    """Two files and their index."""
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[:5], names[5:])):
        save_file({name: tensors[name] for name in part}, folder / f"part{number}.safetensors")
        index |= dict.fromkeys(part, f"part{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def without_part(folder: Path) -> None:
    sharded(folder)
    (folder / "part1.safetensors").unlink()


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def bad_index(folder: Path) -> None:
    only_pickle(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')


def twice(folder: Path) -> None:
    sharded(folder)
    shutil.copy(folder / "part0.safetensors", folder / "part2.safetensors")
    index = folder / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": names | {"transformer.h.0.ln_1.bias": "part2.safetensors"}}))


WTE, QKV = "transformer.wte.weight", "transformer.h.1.attn.c_attn.weight"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
IS_POINTER = "a Git LFS pointer, not the file itself; get it with Git LFS installed: git -C "
WRONG: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), ["no config.json", "Hugging Face"]),
    "torn config": (content("config.json", b'{"model_type": '), ["config.json is damaged: Expecting value"]),
    "binary config": (content("config.json", b"\xff\xfe"), ["config.json is damaged"]),
    "no object": (content("config.json", b"[]"), ["config.json is damaged: it holds no JSON object"]),
    "no type": (
        content("config.json", b"{}"),
        ["model_type=null: no causal language model of the installed transformers"],
    ),
    "another type": (
        edited(model_type="qwen2"),
        ["config.json: a qwen2 of these sizes has 10,807,", " parameters; model.safetensors holds "],
    ),
    "another class": (edited(architectures=["GPT2ForTokenClassification"]), ["architectures=", "GPT2LMHeadModel"]),
    "heads": (edited(n_head=5), ["config.json: model.n_head=5: does not divide model.d_model=32"]),
    "export without model": (edited(model_type="ssa"), ["config.json: ssa: not set"]),
    "export of another version": (
        lambda folder: (write_export(folder, small("gpt2")), edited(ssa={"depth": 3})(folder)),
        ["config.json: ssa is damaged or from another version: "],
    ),
    "pickle": (only_pickle, ["no model.safetensors", "pytorch_model.bin", "save_pretrained"]),
    "bad index": (bad_index, ["model.safetensors.index.json is damaged: no weight_map"]),
    "without a part": (without_part, ["part1.safetensors is missing", "index.json", "1 of 2"]),
    "cut short": (cut, ["model.safetensors is damaged or truncated"]),
    "pointer in the place of weights": (content("model.safetensors", POINTER), [f"model.safetensors: {IS_POINTER}"]),
    "pointer in the place of a config": (content("config.json", POINTER), [f"config.json: {IS_POINTER}"]),
    "empty": (content("model.safetensors", b""), ["model.safetensors is damaged or truncated"]),
    "garbage": (content("model.safetensors", b"\xff" * 99), ["model.safetensors is damaged or truncated"]),
    "missing": (
        changed(lambda t: t.pop(QKV)),
        [f"the 28 tensors of the GPT2LMHeadModel in config.json; 1 missing: {QKV} (32, 96)"],
    ),
    "many missing": (changed(lambda t: [t.pop(n) for n in list(t) if "h.1.mlp" in n]), ["4 missing: ", "and 1 more"]),
    "no embedding": (changed(lambda t: t.pop(WTE)), ["model.safetensors: no token embedding of a GPT2LMHeadModel"]),
    "misshaped": (
        changed(lambda t: t.update({QKV: t[QKV].t().contiguous()})),
        [f"1 with the wrong shape: {QKV} (96, 32), expected (32, 96)"],
    ),
    "other vocabulary": (edited(vocab_size=601), ["config.json: vocab_size=601: model.safetensors has 600"]),
    "fewer layers": (edited(n_layer=1), ["config.json: n_layer=1: model.safetensors has 2"]),
    "left over": (changed(lambda t: t.update(score=torch.ones(2, 3))), ["1 unexpected: score (2, 3)"]),
    "twice": (twice, ["its 3 safetensors files", "(duplicate)"]),
    "quantized": (
        changed(lambda t: t.update({QKV: t[QKV].to(torch.int8)})),
        ["1 with an unsupported dtype", f"{QKV} I8"],
    ),
    "NaN": (
        changed(lambda t: t[QKV][3].fill_(float("nan"))),
        [f"1 not finite (NaN or infinity): {QKV}"],
    ),
    "infinity, also beyond float32": (
        changed(lambda t: t.update({QKV: t[QKV].double() * 1e300, WTE: t[WTE] / 0})),
        [f"2 not finite (NaN or infinity): {WTE}, {QKV}"],
    ),
    "not tied": (
        changed(lambda t: t.update({"lm_head.weight": t[WTE] + 1})),
        ["lm_head.weight differs from the token embedding", "tie_word_embeddings=true"],
    ),
    "tied in another shape": (
        changed(lambda t: t.update({"lm_head.weight": torch.ones(3, 32)})),
        ["lm_head.weight (3, 32), expected (600, 32)"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_line_for_each_fault(case: str, tmp_path: Path) -> None:
    damage, expected = WRONG[case]
    write_model(tmp_path, "gpt2")
    damage(tmp_path)
    message = refused(tmp_path)
    assert [part for part in expected if part not in message] == [], message


COUNTS = (0, -1, 2.5, True, "1000000000", math.nan, math.inf, [2], 10**6, 10**9, 10**12, 10**30)
SIZES = {
    "gpt2": ("vocab_size", "n_layer", "n_head", "n_embd", "n_positions", "n_inner"),
    "gpt_neox": ("vocab_size", "num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size"),
    "llama": ("vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
}


@pytest.mark.parametrize(("model_type", "key"), [(kind, key) for kind, keys in SIZES.items() for key in keys])
def test_the_files_decide_on_sizes(model_type: str, key: str, tmp_path: Path) -> None:
    write_model(tmp_path, model_type)
    whole = (tmp_path / "config.json").read_text()
    for value in COUNTS:
        (tmp_path / "config.json").write_text(whole)
        edited(**{key: value})(tmp_path)
        message = refused(tmp_path)
        assert re.match(rf"config\.json: .*({key}|n_head|n_kv_head)=", message), message
        assert shown(value) in message
        assert "valid: " in message or "model.safetensors has " in message


@pytest.mark.parametrize(("key", "value"), [("n_layer", 10**9), ("d_ff", 10**9), ("d_model", 10**9), ("n_head", 3)])
def test_the_files_of_an_export_decide_on_its_sizes(key: str, value: int, tmp_path: Path) -> None:
    write_export(tmp_path, small("llama"))
    described = json.loads((tmp_path / "config.json").read_text())
    edited(ssa={**described["ssa"], key: value})(tmp_path)
    assert re.match(rf"config\.json: .*{key}={value}\b.*: (model.safetensors has|valid)", refused(tmp_path))


def test_rotary_positions_take_no_memory(tmp_path: Path) -> None:
    model = write_model(tmp_path, "llama")
    edited(max_position_embeddings=10**9)(tmp_path)
    assert torch.equal(from_pretrained(str(tmp_path))(ids()), model(ids()))
    edited(max_position_embeddings=10**10)(tmp_path)
    assert "max_positions=10000000000: out of range; valid: > 0" in refused(tmp_path)


def header(values: Any, length: int | None = None) -> Callable[[Path], None]:
    """A file of 8 bytes of data with this header, which may lie about its own length."""
    text = json.dumps(values).encode()
    data = (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(8)
    return content("model.safetensors", data)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LIES: dict[str, Callable[[Path], None]] = {
    "length": header({WTE: entry()}, 10**15),
    "list": header([WTE]),
    "null": header({WTE: None}),
    "dtype": header({WTE: entry(dtype="F64")}),
    "no dtype": header({WTE: entry(dtype=None)}),
    "shape": header({WTE: entry(shape=[10**9, 10**9])}),
    "negative shape": header({WTE: entry(shape=[-2, -1])}),
    "shape of text": header({WTE: entry(shape="22")}),
    "overlap": header({WTE: entry(), "other": entry(offsets=[4, 12])}),
    "gap": header({WTE: entry(shape=[1], offsets=[4, 8])}),
    "beyond the end": header({WTE: entry(shape=[4], offsets=[0, 16])}),
    "reversed": header({WTE: entry(shape=[0], offsets=[8, 0])}),
    "huge": header({WTE: entry(shape=[2**62, 4], offsets=[0, 2**66])}),
    "deep": content("model.safetensors", (40_000).to_bytes(8, "little") + b"[" * 20_000 + b"]" * 20_000),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(lie: str, tmp_path: Path) -> None:
    write_model(tmp_path, "gpt2")
    LIES[lie](tmp_path)
    assert refused(tmp_path).startswith("model.safetensors is damaged or truncated: ")


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "", ".", "a\0b", "\ud83c", "x" * 300, 3, None, ["x"], "gone"])
def test_an_index_of_other_names(name: Any, tmp_path: Path) -> None:
    write_model(tmp_path, "gpt2")
    sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    names = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**names, WTE: name}}))
    assert re.search(r"index\.json is damaged: no weight_map|gone is missing", refused(tmp_path))


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    write_model(tmp_path, "gpt2")
    assert "valid: its folder" in refused(tmp_path / "model.safetensors")


@pytest.mark.parametrize(("field", "value"), [("n_layer", 3), ("tie_embeddings", False), ("max_positions", 128)])
def test_a_different_architecture(field: str, value: Any, tmp_path: Path) -> None:
    write_model(tmp_path, "gpt2")
    with pytest.raises(UserError, match=f"model.{field}={str(value).lower()}: init_from=.* has "):
        load_pretrained(small("gpt2", **{field: value}), str(tmp_path), seed=0)


def test_a_tokenizer_with_too_many_tokens() -> None:
    tokenizer = Tokenizer("mine", train_bpe(iter(["some words and more words"]), 280))
    check_vocabulary(small("gpt2"), tokenizer)
    check_vocabulary(small("gpt2", vocab_size=None), tokenizer)
    with pytest.raises(UserError, match=r"data\.tokenizer=mine: .* tokens; valid: up to model\.vocab_size=100"):
        check_vocabulary(small("gpt2", vocab_size=100), tokenizer)


# The Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the repository org/model; one with a file ``offline`` cannot be reached."""
    folder = tmp_path / "repository"

    def download(repo: str, filename: str, kind: str, revision: str | None = None, *, field: str) -> Path:
        assert (repo, kind, field) == ("org/model", "model", "init_from")
        if (folder / filename).exists():
            return folder / filename
        if (folder / "offline").exists():
            raise HubUnreachable(f"{field}={repo}: cannot be fetched ({filename})")
        raise NotInRepository(f"{field}={repo}: 404")

    monkeypatch.setattr(source, "download", download)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("prepare", [lambda folder: None, sharded], ids=["one file", "several"])
@pytest.mark.parametrize("offline", [False, True])
def test_a_model_on_the_hub(prepare: Callable[[Path], None], offline: bool, hub: Path) -> None:
    written = write_model(hub, "gpt2")
    prepare(hub)
    if offline:  # everything was fetched before
        (hub / "offline").touch()
    assert torch.equal(from_pretrained("org/model")(ids()), written(ids()))


def test_missing_files_on_the_hub(hub: Path) -> None:
    with pytest.raises(UserError, match=r"init_from=org/model: no config\.json; valid: a Hugging Face model"):
        from_pretrained("org/model")
    write_files(hub, {"model_type": "gpt2"}, {})
    (hub / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"init_from=org/model: no model\.safetensors, and no .*pytorch_model\.bin"):
        from_pretrained("org/model")
    (hub / "offline").touch()
    with pytest.raises(HubUnreachable, match=r"cannot be fetched \(model\.safetensors\)"):
        from_pretrained("org/model")


def test_the_hub_is_unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubUnreachable, match=r"^init_from=org/never-heard-of: cannot be fetched .* init_from=FOLDER$"):
        describe("org/never-heard-of")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("org/Model-1.5b", "Model-1.5b"),
        ("a/b/", "b"),
        ("x/my model", "my-model"),
        ("x/_hidden", "hidden"),
        ("/", "pretrained"),
    ],
)
def test_size_label(name: str, label: str) -> None:
    assert size_label(name) == label
    ModelConfig(name="x", size=label, n_layer=1, n_head=1, d_model=2)


def test_a_model_object_is_not_a_name() -> None:
    with pytest.raises(UserError) as error:
        from_pretrained(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    assert str(error.value) == (
        "init_from: a Linear object; valid: a folder, or a Hub id; ssa.adapt(model) adds temperatures to a model of "
        "transformers"
    )


def test_a_path_is_a_name(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", "gpt2")
    assert torch.equal(from_pretrained(tmp_path / "model").head.weight, model.head.weight)
