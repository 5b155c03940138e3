"""``init_from=`` on the command line: the architecture is the pretrained model's, and contradictions are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import programs
import pytest
from data_configs import data_config
from pretrained_folders import SSA, VOCAB, small, write_export, write_model

from ssa.command_line.compose import configured
from ssa.config import Config, parse
from ssa.errors import UserError
from ssa.text.corpus import open_corpus
from ssa.text.tokenization import load_tokenizer, train_bpe

WIDTHS = ["model.d_model=32", "model.n_head=4", "data.block_size=64"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind; ``ssa`` is an SSA Llama of this project."""
    parent = tmp_path_factory.mktemp("models")
    for model_type in ("gpt2", "gpt_neox", "llama"):
        write_model(parent / model_type, model_type)
    write_export(parent / "ssa", small("llama", SSA))
    return {path.name: path for path in parent.iterdir()}


@pytest.mark.parametrize(
    ("model_type", "options"),
    [("gpt2", ["gpt2", "ssa_gpt2"]), ("gpt_neox", ["pythia", "ssa_pythia"]), ("llama", ["llama", "ssa_llama"])],
)
def test_the_architecture_is_the_pretrained_models(
    model_type: str, options: list[str], folders: dict[str, Path]
) -> None:
    folder = folders[model_type]
    for option in options:
        config = configured(f"model={option}", f"init_from={folder}", "data.block_size=64", "model.dropout=0.1")
        wanted = small(model_type)
        for field in (
            "n_layer",
            "d_model",
            "n_kv_head",
            "head_dim",
            "d_ff",
            "d_rotary",
            "tie_embeddings",
            "max_positions",
        ):
            assert getattr(config.model, field) == getattr(wanted, field)
        assert (config.model.name, config.model.size, config.model.dropout) == (option, model_type, 0.1)
        assert (config.model.vocab_size, config.data.tokenizer) == (VOCAB, str(folder))
        assert bool(config.model.temperature.scaled) == option.startswith("ssa")
        assert config.model.temperature.alpha_init == -10
        assert config == configured(f"model={option}", f"init_from={folder}", "model.dropout=0.1", *WIDTHS)


def test_the_run_id_depends_on_the_content_of_the_start(folders: dict[str, Path], tmp_path: Path) -> None:
    overrides = ["model=llama", "data.block_size=64", "data.tokenizer=bpe-512"]

    def at(folder: Path, *more: str) -> Config:
        return configured(*overrides, f"init_from={folder}", *more)

    copied, other = tmp_path / "elsewhere" / "llama", tmp_path / "other" / "llama"
    shutil.copytree(folders["llama"], copied)
    first, second = at(folders["llama"]), at(copied)
    assert first.init_hash == second.init_hash
    assert first.init_from != second.init_from
    assert first.run_id == second.run_id
    assert parse(first.plain()).run_id == first.run_id
    own = [at(folder, "data.tokenizer=" + str(folder)) for folder in (folders["llama"], copied)]
    assert own[0].run_id == own[1].run_id != first.run_id, "nor does the tokenizer count by its path"
    other.parent.mkdir()
    write_model(other, "llama", seed=1)
    assert at(other).run_id != first.run_id


WRONG: dict[str, tuple[str, list[str], str]] = {
    "field": ("llama", ["model=llama", "model.n_layer=5"], "model.n_layer=5: init_from=X has 2"),
    "field, appended": ("llama", ["model=llama", "++model.d_model=64"], "model.d_model=64: init_from=X has 32"),
    "field of another type": ("llama", ["model=llama", "model.n_layer=abc"], "model.n_layer=abc: init_from=X has 2"),
    "default by name": ("llama", ["model=llama", "model.n_kv_head=null"], "model.n_kv_head=null: init_from=X has 2"),
    "deleted": ("llama", ["model=llama", "~model.norm"], "model.norm=null: init_from=X has rms"),
    "section": (
        "llama",
        ["model=llama", "model/size=llama3-1b", "model.rope_scaling.factor=2.0"],
        "model/size=llama3-1b: init_from=X has n_layer=2, not 16; the size is the pretrained model's",
    ),
    "below a section": (
        "llama",
        ["model=llama", "+model.rope_scaling.factor=2.0"],
        "model.rope_scaling.factor=2.0: init_from=X has null",
    ),
    "size": (
        "llama",
        ["model=llama", "model/size=nano"],
        "model/size=nano: init_from=X has n_layer=2, not 3; the size is the pretrained model's",
    ),
    "label": ("gpt2", ["model=gpt2", "model.size=nano"], "model/size=nano: init_from=X has n_layer=2, not 3"),
    "backbone": (
        "llama",
        ["model=gpt2"],
        "model=gpt2: init_from=X is llama (model_type); choose model=llama or model=ssa_llama",
    ),
    "backbone by default": (
        "gpt_neox",
        [],
        "model=ssa_gpt2: init_from=X is gpt_neox (model_type); choose model=pythia or model=ssa_pythia",
    ),
    "backbone of an export": ("ssa", ["model=ssa_gpt2"], "model=ssa_gpt2: init_from=X is ssa (model_type); choose "),
    "vanilla of an export": (
        "ssa",
        ["model=llama"],
        "model.temperature=none: init_from=X has temperatures; choose its rule, model/temperature=ssa",
    ),
    "another rule than the export's": (
        "ssa",
        ["model=llama", "model/temperature=ssmax"],
        "model.temperature.query.token=none: init_from=X has shared; choose its rule, model/temperature=ssa",
    ),
    "longer than the positions": (
        "llama",
        ["model=llama", "data.block_size=65"],
        "data.block_size=65: over the model's positions; valid: up to model.max_positions=64",
    ),
    "unknown key": ("llama", ["model=llama", "+model.depth=3"], "model.depth: unknown key"),
    "elsewhere": ("llama", ["model=llama", "trainer.steps=0"], "trainer.steps=0: out of range"),
    "wrong temperature": (
        "ssa",
        ["model=ssa_llama", "model.temperature.per=token"],
        "model.temperature.per=token: not one of the choices",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_line_for_a_contradiction(case: str, folders: dict[str, Path]) -> None:
    name, overrides, expected = WRONG[case]
    with pytest.raises(UserError) as error:
        configured(f"init_from={folders[name]}", "data.block_size=64", *overrides)
    assert str(error.value).replace(str(folders[name]), "X").startswith(expected)


def test_an_export_with_its_temperatures(folders: dict[str, Path]) -> None:
    config = configured("model=ssa_llama", f"init_from={folders['ssa']}", "data.block_size=64")
    assert config.model.n_kv_head == 2


def test_invalid_values_of_init_from() -> None:
    for value, shown in (("3", "3"), ('""', ""), ("[a]", r"\["), ("false", "false")):
        with pytest.raises(UserError, match=rf"^init_from={shown}.*: valid: a folder, or an id of the Hub$"):
            configured(f"init_from={value}")
    with pytest.raises(UserError, match=r"^init_from=\./nowhere: no such folder$"):
        configured("init_from=./nowhere")
    assert configured("init_from=null").model.vocab_size is None


def test_errors_are_reported_before_heavy_imports(folders: dict[str, Path], tmp_path: Path) -> None:
    arguments = ["model=ssa_llama", f"init_from={folders['llama']}", "data.block_size=65"]
    outcome = programs.launch("train.py", *arguments, cwd=tmp_path)
    assert (outcome.code, outcome.out, outcome.heavy) == (2, "", set())
    assert outcome.err.startswith("error: data.block_size=65:")


# data.tokenizer, by default the pretrained model's


def test_a_folder_with_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "bpe-model").mkdir()
    data = data_config("pydocs", tokenizer=tmp_path / "bpe-model")
    with pytest.raises(
        UserError, match=r"data\.tokenizer=.*bpe-model: the folder has no tokenizer\.json; valid: bpe-N"
    ):
        load_tokenizer(data, open_corpus(data))
    (tmp_path / "bpe-model" / "tokenizer.json").write_text(train_bpe(iter(["some words"] * 9), 270))
    assert 256 < load_tokenizer(data, open_corpus(data)).vocab_size <= 270


@pytest.mark.parametrize("option", ["gpt2", "ssa_gpt2"])
def test_a_run_from_a_pretrained_model(option: str, folders: dict[str, Path], small_text: Path, tmp_path: Path) -> None:
    from ssa.training.train import train

    overrides = [f"model={option}", f"init_from={folders['gpt2']}", "scale=smoke", "data=text", "logger=none"]
    overrides += [f"data.train={small_text}", "data.tokenizer=bpe-512", f"output_dir={tmp_path}", "data.block_size=32"]
    config = configured(*overrides, "trainer.steps=3", "trainer.eval_every=3", "optim.warmup_steps=1")
    assert train(config)["best/val/loss"] > 0
    with pytest.raises(UserError, match=r"data\.tokenizer=bpe-700: 700 tokens; valid: up to model\.vocab_size=600"):
        train(configured(*overrides, "data.tokenizer=bpe-700"))
