"""The typed config: every option composes, wrong values are named, and the identity is what decides the numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssa.command_line import cli
from ssa.command_line.compose import composed, configured
from ssa.command_line.conf_groups import options
from ssa.config import SCALES, Config, parse, upgraded
from ssa.errors import UserError
from ssa.paths import CONF


@pytest.fixture(scope="module")
def default() -> Config:
    return configured()


OPTIONS = {f"{file.parent.relative_to(CONF).as_posix()}={file.stem}" for file in CONF.glob("*/**/[!_]*.yaml")}
OPTIONS.remove("model=hf")  # with init_from= only
NEEDS = {"data=hub": ["data.path=org/name"], "data=text": ["data.train=books/*.txt"]}
NEEDS |= {f"model/size={name}": ["model=llama"] for name, text in options()["model/size"].items() if "llama" in text}


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_every_option_composes(option: str) -> None:
    configured(option, *NEEDS.get(option, []))


@pytest.mark.parametrize("group", ["data", "model"])
def test_shared_settings_are_no_option(group: str) -> None:
    assert (CONF / group / "_base.yaml").is_file()
    assert "_base" not in options()[group]
    with pytest.raises(UserError, match=f"{group}=_base: no such option; valid: [a-z]") as error:
        configured(f"{group}=_base")
    assert "_base" not in str(error.value).partition("valid")[2]


def test_the_scales_are_the_files_of_their_group() -> None:
    assert set(SCALES) == set(options()["scale"])


def test_experiment_names_a_group_of_runs(default: Config) -> None:
    config = configured("experiment=mine")
    assert config.experiment == "mine"
    assert config.identity() == default.identity()


# Sizes: parameters, embeddings (50,257 tokens, 1,024 positions) included where the name counts them.


@pytest.mark.parametrize(
    ("size", "layers", "heads", "d_model", "millions", "embeddings"),
    [
        ("nano", 3, 5, 160, 0.92, False),
        ("micro", 8, 5, 320, 9.8, False),
        ("124m", 12, 12, 768, 124, True),
        ("355m", 24, 16, 1024, 355, True),
        ("774m", 36, 20, 1280, 774, True),
        ("1.5b", 48, 25, 1600, 1558, True),
    ],
)
def test_size_table(size: str, layers: int, heads: int, d_model: int, millions: float, embeddings: bool) -> None:
    model = configured(f"model/size={size}").model
    assert (model.size, model.n_layer, model.n_head, model.d_model) == (size, layers, heads, d_model)
    count = 12 * layers * d_model**2 + embeddings * (50257 + model.max_positions) * d_model
    assert count / 1e6 == pytest.approx(millions, rel=0.005)


def test_vanilla_has_no_temperature(default: Config) -> None:
    vanilla = configured("model=gpt2").model
    temperature = vanilla.temperature
    assert (temperature.query, temperature.key, temperature.value) == (None, None, None)
    same = replace(vanilla, name=default.model.name, temperature=default.model.temperature)
    assert same == default.model


@pytest.mark.parametrize(
    ("name", "token", "position"), [("ssa", "shared", "log"), ("token", "shared", "none"), ("position", "none", "log")]
)
def test_temperatures_scale_query_and_value(name: str, token: str, position: str) -> None:
    temperature = configured("model=gpt2", f"model/temperature={name}").model.temperature
    assert temperature.query is not None
    assert (temperature.query.token, temperature.query.position) == (token, position)
    assert (temperature.value, temperature.key) == (temperature.query, None)


def test_a_part_of_the_temperature_can_be_set_and_unset() -> None:
    overrides = ("model.temperature.value=null", "model.temperature.key={token:shared,position:none}")
    temperature = configured(*overrides).model.temperature
    assert temperature.value is None
    assert temperature.key is not None
    assert (temperature.key.token, temperature.key.position) == ("shared", "none")


# Scales


def test_a_scale_gives_way_to_the_command_line() -> None:
    config = configured("scale=gpu", "model/size=micro", "trainer.steps=500")
    assert (config.scale, config.model.size, config.model.d_model, config.trainer.steps) == ("gpu", "micro", 320, 500)
    assert config.data.block_size == 1024


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (4, 3), (100, 99), (101, 100), (1000, 100)])
def test_the_default_warmup_ends_before_training(steps: int, warmup: int) -> None:
    assert configured("scale=laptop", f"trainer.steps={steps}").optim.warmup_steps == warmup
    with pytest.raises(UserError, match=f"optim.warmup_steps={steps}: warm-up would not end in training"):
        configured("scale=laptop", f"trainer.steps={steps}", f"optim.warmup_steps={steps}")


def test_a_scale_of_ones_own_sets_the_size_and_gives_way_to_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "scale" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(
        "# @package _global_\n"
        "defaults: [gpu, override /model/size: 355m, _self_]\n"
        "scale: mine\n"
        "experiment: mine\n"
        "trainer: {steps: 701}\n"
    )
    searchpath = f"hydra.searchpath=[file://{tmp_path}]"
    config = configured(searchpath, "scale=mine")
    assert (config.scale, config.model.size, config.trainer.steps) == ("mine", "355m", 701)
    assert (config.experiment, config.trainer.batch_size) == ("mine", configured("scale=gpu").trainer.batch_size)
    config = configured(searchpath, "scale=mine", "model/size=nano", "trainer.steps=300")
    assert (config.scale, config.model.size, config.trainer.steps) == ("mine", "nano", 300)


def test_paper_scale_is_the_released_pretraining() -> None:
    config = configured("scale=paper", "model=gpt2")
    optim, trainer = config.optim, config.trainer
    assert config.model.size == "124m"
    assert (optim.name, optim.schedule, optim.lr, optim.warmup_steps) == ("adamw", "cosine", 6e-4, 2000)
    assert optim.lr * optim.min_lr_ratio == pytest.approx(6e-5)
    assert (optim.beta1, optim.beta2, optim.weight_decay, optim.grad_clip) == (0.9, 0.95, 0.1, 1.0)
    assert (trainer.batch_size, trainer.steps, config.data.block_size) == (480, 600_000, 1024)


def test_gpu_scale_is_ten_minutes_of_tokens() -> None:
    config = configured("scale=gpu")
    tokens_a_step = config.trainer.batch_size * config.data.block_size
    assert 0.25e6 <= tokens_a_step <= 0.5e6
    assert tokens_a_step * config.trainer.steps <= 300e6


def test_accumulation_fills_the_batch() -> None:
    trainer = configured("trainer.batch_size=24", "trainer.micro_batch_size=8").trainer
    assert trainer.micro_batches() == (8, 3)


# What `parse` refuses

WRONG: list[tuple[str, Any, list[str]]] = [
    ("trainer.steps", "abc", ["trainer.steps=abc:", "whole number, not text"]),
    ("trainer.steps", True, ["trainer.steps=true:", "whole number"]),
    ("trainer.steps", 0, ["trainer.steps=0:", "valid: > 0"]),
    ("trainer.steps", 2**31, ["trainer.steps=2147483648:", "valid: > 0 and < 2147483648"]),
    ("seed", -1, ["seed=-1:", "valid: >= 0"]),
    ("optim.lr", "fast", ["optim.lr=fast:", "a number, not text"]),
    ("optim.lr", float("inf"), ["optim.lr=Infinity:", "finite"]),
    ("optim.lr", float("nan"), ["optim.lr=NaN:", "finite"]),
    ("optim.beta1", 1.0, ["optim.beta1=1.0:", "valid: >= 0 and < 1"]),
    ("optim.grad_clip", 0.0, ["optim.grad_clip=0.0:", "valid: > 0"]),
    ("optim.schedule", "cosin", ["optim.schedule=cosin:", "did you mean cosine?", "valid: cosine, wsd, constant"]),
    ("optim.name", "sgd", ["optim.name=sgd:", "valid: adamw"]),
    ("trainer.compile", "maybe", ["trainer.compile=maybe:", "valid: true, false, auto"]),
    ("trainer.precision", "fp16", ["trainer.precision=fp16:", "valid: auto, bf16-mixed, 32-true"]),
    ("logger.tags", "a", ["logger.tags=a:", "a list"]),
    ("logger.tags", [1], ["logger.tags=1:", "text"]),
    ("logger.project", "a b", ["logger.project=a b:", "letters, digits"]),
    ("output_dir", "", ["output_dir=:", "at least one character"]),
    ("model.dropout", 1.0, ["model.dropout=1.0:", "valid: >= 0 and < 1"]),
    ("model.temperature", None, ["model.temperature=null:", "query, key, value"]),
    ("model.temperature.query", 5, ["model.temperature.query=5:", "token, position"]),
    (
        "model.temperature.query.token",
        "own",
        ["model.temperature.query.token=own:", "valid: none, frequency, gate, mlp, shared, tanh_gate"],
    ),
    ("model.temperature.query.scale", 1, ["model.temperature.query.scale:", "unknown key", "valid: token, position"]),
    ("model.n_kv_head", 3, ["model.n_kv_head=3:", "model.n_head=5", "valid: 1, 5"]),
    ("data.train", "books/*.txt", ["data.train=books/*.txt:", "data=pydocs does not read it", "valid with data=text"]),
    ("data.revision", "main", ["data.revision=main:", "valid with data=hub"]),
    ("data.block_size", 2048, ["data.block_size=2048:", "model.max_positions=1024"]),
    ("data.validation_fraction", 0.5, ["data.validation_fraction=0.5:", "valid: >= 1e-09 and <= 0.2"]),
    ("optim.warmup_steps", 10**6, ["optim.warmup_steps=1000000:", "trainer.steps="]),
    ("trainer.micro_batch_size", 3, ["trainer.micro_batch_size=3:", "trainer.batch_size=8", "valid: 1, 2, 4, 8"]),
]


@pytest.mark.parametrize(("key", "value", "expected"), WRONG, ids=[f"{key}={value}" for key, value, _ in WRONG])
def test_a_wrong_value_is_named(key: str, value: Any, expected: list[str], default: Config) -> None:
    values = section = default.plain()
    *sections, last = key.split(".")
    for name in sections:
        section = section[name]
    section[last] = value
    with pytest.raises(UserError) as refused:
        parse(values)
    assert [part for part in expected if part not in str(refused.value)] == [], str(refused.value)


def test_a_width_that_is_too_large_for_its_mlp() -> None:
    with pytest.raises(UserError, match=r"^model\.d_ff=4000000000: out of range; valid: > 0 and < 2147483648"):
        configured("model.d_model=1000000000")


def test_heads_divide_the_model() -> None:
    with pytest.raises(UserError, match=r"^model\.n_head=3: does not divide model\.d_model=160; valid: 1, 2, 4, 5,"):
        configured("model.n_head=3")


# Identity


def test_plain_values_come_back_the_same(default: Config) -> None:
    assert parse(yaml.safe_load(yaml.safe_dump(default.plain()))) == default


def test_a_config_of_this_version_is_not_upgraded(default: Config) -> None:
    assert upgraded(default.plain()) == default.plain()


def test_a_config_of_version_0_1_is_upgraded() -> None:
    query = {"token": "shared", "position": "log", "base": "yarn"}
    old = {"model": {"width": 8, "tied_head": True, "temperature": {"query": query, "train_length": 3}}, "seed": 1}
    terms = {"token": "shared", "position": "log", "multiplier": "yarn"}
    new = {"d_model": 8, "tie_embeddings": True, "temperature": {"query": terms}}
    assert upgraded(old) == {"model": new, "seed": 1}
    assert upgraded(old["model"], "model.") == new


SAME_RUN = [
    ["logger=none"],
    ["logger.project=other", "logger.tags=[a,b]", "logger.detail=head"],
    ["output_dir=/elsewhere"],
    ["rerun=true"],
    ["data.cache_dir=/elsewhere"],
    ["data.workers=1"],
    ["trainer.log_every=3"],
    ["trainer.checkpoint_every=3"],
    ["trainer.keep_last=true"],
]


@pytest.mark.parametrize("overrides", SAME_RUN, ids=" ".join)
def test_the_same_run(overrides: list[str], default: Config) -> None:
    config = configured(*overrides)
    assert config != default
    assert config.run_id == default.run_id


@pytest.mark.parametrize("override", ["model.d_ff=640", "model.head_dim=32", "model.temperature.alpha_init=-4.5"])
def test_a_default_spelled_out_is_the_same_run(override: str, default: Config) -> None:
    assert configured(override) == default


def test_the_identity_is_in_values_not_in_names(default: Config) -> None:
    assert configured("model=gpt2", "model/temperature=ssa").identity() == default.identity()


OTHER_RUN = [
    "seed=1",
    "model=gpt2",
    "model.temperature.value=null",
    "model.temperature.per=layer",
    "model/size=micro",
    "model.dropout=0.1",
    "data.block_size=128",
    "data.tokenizer=other",
    "data.max_documents=7",
    "data.max_eval_tokens=7000",
    "data.noise=0.1",
    "optim.lr=1e-3",
    "optim.temperature_lr_multiplier=1",
    "trainer.steps=900",
    "trainer.batch_size=32",
    "trainer.micro_batch_size=4",
    "trainer.eval_every=50",
    "trainer.precision=32-true",
]


@pytest.mark.slow
def test_other_runs_are_told_apart(default: Config) -> None:
    run_ids = [default.run_id, *(configured(override).run_id for override in OTHER_RUN)]
    assert len(set(run_ids)) == len(run_ids)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["model=gpt2", "scale=gpu", "seed=3"], "gpt2-124m-vanilla-pydocs-s3"),
        (["model=ssa_llama"], "llama-nano-ssa-pydocs-s0"),
        (["model.temperature.value=null"], "gpt2-nano-ssa-query-pydocs-s0"),
        (["model/temperature=ssa_mlp", "model.temperature.query=null"], "gpt2-nano-ssa_mlp-value-pydocs-s0"),
        (
            ["+model.temperature.key={token: shared}"],
            "gpt2-nano-query-shared-log-key-shared-value-shared-pydocs-s0",
        ),
        (["+model.temperature.key={token: shared, position: log}"], "gpt2-nano-ssa-query-key-value-pydocs-s0"),
        ([f"model.temperature.{one}.position=none" for one in ("query", "value")], "gpt2-nano-token-pydocs-s0"),
        (["model.temperature.per=layer"], "gpt2-nano-ssa-per-layer-pydocs-s0"),
        (["model/temperature=released"], "gpt2-nano-released-pydocs-s0"),
        (["model.n_layer=2", "model.d_model=320"], "gpt2-L2-d320-ssa-pydocs-s0"),
        (["model.d_model=128", "model.n_head=4"], "gpt2-L3-d128-h4-ssa-pydocs-s0"),
        (["model.d_ff=100"], "gpt2-L3-d160-ff100-ssa-pydocs-s0"),
        (["model.n_layer=3"], "gpt2-nano-ssa-pydocs-s0"),
    ],
)
def test_the_run_id_says_what_it_is(overrides: list[str], names: str) -> None:
    config = configured(*overrides)
    assert config.run_id == f"{names}-{config.short_id}"


# resume=RUN_FOLDER


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run folder as far as its config goes: of a smoke run that differs from the defaults."""
    config = configured("scale=smoke", "model=gpt2", "trainer.steps=100", "model.temperature.value=null", "rerun=true")
    path = tmp_path_factory.mktemp("run")
    (path / "config.yaml").write_text(yaml.safe_dump(config.plain()))
    return str(path)


def test_resume_takes_the_config_of_the_run(folder: str) -> None:
    config = configured(f"resume={folder}")
    assert (config.scale, config.model.name, config.trainer.steps) == ("smoke", "gpt2", 100)
    assert (config.resume, config.rerun) == (folder, False)


@pytest.mark.parametrize(
    "overrides",
    [
        ["scale=smoke", "model=gpt2", "trainer.steps=100"],
        ["model.temperature.value=null"],
        ["trainer=default", "scale=smoke", "trainer.steps=100"],
    ],
    ids=" ".join,
)
def test_resume_allows_what_the_run_is_anyway(overrides: list[str], folder: str) -> None:
    assert configured(f"resume={folder}", *overrides) == configured(f"resume={folder}")


def test_resume_applies_what_does_not_change_the_run(folder: str) -> None:
    config = configured(f"resume={folder}", "logger=none", "logger.tags=[again]", "data.workers=3")
    assert (config.logger.name, config.logger.tags, config.data.workers) == ("none", ["again"], 3)
    assert config.trainer.steps == 100


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer.steps=200"], ["trainer.steps: 100 -> 200"]),
        (["trainer.steps=200", "optim.lr=1"], ["trainer.steps: 100 -> 200", "optim.lr: 0.002 -> 1"]),
        (["trainer.steps=1500"], ["trainer.steps: 100 -> 1500"]),
        (["scale=laptop"], ["scale: smoke -> laptop"]),
        (["model=ssa_gpt2"], ["model: gpt2 -> ssa_gpt2"]),
        (["model/size=micro"], ["model/size: nano -> micro"]),
        (["model.temperature.query.token=none"], ["model.temperature.query"]),
        (["~trainer.steps"], ["trainer.steps: not set"]),
        (["+trainer.step=3"], ["trainer.step: unknown key"]),
    ],
    ids=str,
)
def test_resume_refuses_what_would_change_the_run(overrides: list[str], expected: list[str], folder: str) -> None:
    with pytest.raises(UserError) as refused:
        configured(f"resume={folder}", *overrides)
    assert [part for part in expected if part not in str(refused.value)] == [], str(refused.value)


# A job


def test_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def job(config: Config, command: list[str]) -> float:
        raise ZeroDivisionError(config.run_id)

    with pytest.raises(SystemExit, match="1"):
        cli.run(composed(), job)
    assert "Traceback" in (told := capsys.readouterr().err)
    assert told.splitlines()[-1].startswith("ZeroDivisionError: gpt2-nano-ssa")
