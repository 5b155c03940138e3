"""The command line of train.py: a mistake is one line and exit code 2, and leaves nothing on disk."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import programs
import pytest
import yaml
from conftest import ROOT
from omegaconf import DictConfig

from ssa.command_line import cli
from ssa.config import Config
from ssa.config_errors import leaves

TRAIN = str(ROOT / "train.py")


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    def only_error(self) -> str:
        """The one line on stderr of a refused command."""
        assert self.code == 2, self.err
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        assert self.err.endswith("\n")
        return self.err


@pytest.fixture
def launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """``python train.py ARGUMENTS`` in this process, from an empty folder that must stay empty."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def launch(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [TRAIN, *arguments])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(TRAIN, run_name="__main__")
        assert list(folder.iterdir()) == []
        out, err = capfd.readouterr()
        return Outcome(int(exit_.value.code or 0), out, err)

    return launch


def launch_process(*arguments: str, cwd: Path) -> Outcome:
    done = subprocess.run([sys.executable, TRAIN, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert list(cwd.iterdir()) == []
    return Outcome(done.returncode, done.stdout, done.stderr)


SECTIONS = "valid: model, data, optim, trainer, logger, scale, experiment, seed"
WRONG_ARGUMENTS = {
    # groups and options
    "data=wikitex": ["data=wikitex:", "did you mean wikitext?", "pydocs"],
    "model=ssa": ["model=ssa:", "did you mean ssa_gpt2?"],
    "data.vocab_size=300": ["data.vocab_size: unknown key, did you mean data.tokenizer=bpe-8192?"],
    "trainer.lr=1": ["trainer.lr: unknown key, did you mean optim.lr?", "valid: steps"],
    "model=gpt3": ["model=gpt3:", "did you mean gpt2?", "valid: gpt2, hf, llama"],
    "model/size=124": ["model/size=124:", "did you mean 124m?", "355m", "nano"],
    "model/temperature=sa": [
        "model/temperature=sa:",
        "did you mean ssa?",
        "none, position",
        "ssa_mlp, ssmax, tanh_gate, token",
    ],
    "data=a/b": ["data=a/b:", "valid:", "pydocs"],
    "scale=lptop": ["scale=lptop:", "did you mean laptop?", "gpu, laptop, overnight, paper, smoke"],
    "data=_bas": ["data=_bas:", "valid: hub, openwebtext"],
    "modl=gpt2": ["modl:", "did you mean model?", SECTIONS],
    "modle/size=nano": ["modle/size:", "did you mean model/size?", "model/temperature"],
    "modle/size@x=nano": ["modle/size:", "unknown group"],
    "temperature=ssa": ["temperature:", "did you mean model/temperature?", SECTIONS],
    "model=null": ["model=null:", "valid: gpt2, hf, llama"],
    "model/size=[nano,micro]": ["model/size:", "exactly one option", "micro"],
    "~data": ["data:", "exactly one option", "pydocs"],
    "+data=hub": ["data:", "chosen twice"],
    "model.size=micro": ["model.size=micro:", "model/size=micro", "valid: 1.5b"],
    "model.temperature=ssa": ["model.temperature=ssa:", "model/temperature=ssa", "query, key, value"],
    "model/size=smollm-135m": ["only with model=llama or model=ssa_llama; valid with model=ssa_gpt2: 1.5b, 124m"],
    "model.temperature.name=mine": ["model.temperature.name=mine:", "model/temperature=mine", "valid: constant"],
    # keys
    "trainer.step=5": ["trainer.step:", "did you mean trainer.steps?", "valid: steps, batch_size"],
    "traner.steps=5": ["traner:", "did you mean trainer?", SECTIONS],
    "steps=5": ["steps:", "did you mean trainer.steps?", SECTIONS],
    "trainer.steps.x=5": ["trainer.steps.x:", "trainer.steps is a value"],
    "+new=1": ["new:", "unknown key", SECTIONS],
    "+model.temperature.query.scale=1": ["model.temperature.query.scale:", "valid: token, position"],
    "~trainer.steps": ["trainer.steps:", "not set"],
    "~trainer.stps": ["trainer.stps:", "did you mean trainer.steps?"],
    "model.width=64": ["model.width: renamed; write model.d_model"],
    "+model.mlp_width=64": ["model.mlp_width: renamed; write model.d_ff"],
    "~model.tied_head": ["model.tied_head: renamed; write model.tie_embeddings"],
    "data.held_out=0.1": ["data.held_out: renamed; write data.validation_fraction"],
    "model.temperature.query.base=yarn": ["base: renamed; write model.temperature.query.multiplier"],
    "hydra.foo=1": ["hydra.foo:", "--hydra-help"],
    # values: every kind of them is in test_config.py
    "trainer.steps=1e3": ["trainer.steps=1000.0:", "whole number"],
    "optim.lr=-1e-3": ["optim.lr=-0.001:", "valid: > 0"],
    "data.path=3": ["data.path=3:", "text", "'\"3\"'"],
    "trainer.device=gpu": ["trainer.device=gpu:", "valid: auto, cuda, mps, cpu"],
    "model.n_head=3": ["model.n_head=3:", "model.d_model=160", "valid: 1, 2, 4"],
    "data=hub": ["data.path", "ORG/NAME"],
    "plan.memory=foo": ["plan.memory=foo: valid: a size such as 80GB"],
    "plan=maybe": ["plan.show=maybe: expected true or false"],
    "plan.device=h1000": ["plan.device=h1000: not one of the choices, did you mean h100?", "a100"],
    "plan.mfu=2": ["plan.mfu=2: out of range; valid: > 0 and <= 1"],
    # the override language
    "trainer.steps=[": ["trainer.steps=[:", "KEY=VALUE"],
    "pydocs": ["pydocs:", "did you mean data=pydocs?"],
    "=3": ["=3:"],
    "seed=1,2": ["seed=1,2:", "--multirun", "seed=[1,2]"],
    "trainer.steps=${trainer.nope}": ["trainer.steps:", "trainer.nope"],
    "data.path=???": ["data.path:", "not set"],
    # flags
    "--foo": ["--foo: unknown flag; values are set as KEY=VALUE without dashes; valid: --help"],
    "--multirn": ["--multirn:", "did you mean --multirun?"],
    "--batch_size=3": ["--batch_size=3:", "without dashes"],
    "--resolve": ["--resolve:", "--cfg job"],
    "--experimental-rerun=x": ["--experimental-rerun:", "resume=RUN_FOLDER"],
    "--cfg": ["--cfg", "expected one argument"],
    "--config-name=foo": ["foo"],
    "--config-dir=nowhere": ["nowhere"],
    # resume
    "resume=nowhere": ["nowhere is not a run folder"],
}


@pytest.mark.parametrize("argument", WRONG_ARGUMENTS)
def test_one_line_for_a_wrong_argument(argument: str, launch: Callable[..., Outcome]) -> None:
    error = launch(argument).only_error()
    assert [part for part in WRONG_ARGUMENTS[argument] if part not in error] == [], error


@pytest.mark.parametrize("flags", [("--cfg", "job"), ("-m",), ("--cfg", "job", "--resolve")])
def test_renamed_keys_are_reported_with_flags_too(flags: tuple[str, ...], launch: Callable[..., Outcome]) -> None:
    error = launch(*flags, "model.width=64").only_error()
    assert error == "error: model.width: renamed; write model.d_model\n"


GLOBAL = "# @package _global_\n"
SMOKE = GLOBAL + "defaults: [smoke, _self_]\nscale: mine\n"
WRONG_FILES = {
    "misspelled key": (SMOKE + "trainer:\n  step: 5\n", ["trainer.step:", "did you mean trainer.steps?"]),
    "misspelled section": (SMOKE + "trayner:\n  steps: 5\n", ["trayner:", "did you mean trainer?"]),
    "quoted number": (SMOKE + 'trainer:\n  steps: "5"\n', ["trainer.steps=5:", "whole number, not text"]),
    "value for a section": (SMOKE + "trainer: 5\n", ["trainer=5:", "steps, batch_size"]),
    "no value": (SMOKE + "trainer:\n  steps: ${steps}\n", ["trainer.steps:", "key 'steps' not found"]),
    "label without its values": (SMOKE + "model:\n  size: micro\n", ["model.size=micro:", "model/size=micro"]),
    "misspelled group": (GLOBAL + "defaults:\n  - override /modl: gpt2\n", ["scale/mine.yaml: modl:", "model?"]),
    "misspelled option": (GLOBAL + "defaults:\n  - override /model: gpt5\n", ["model=gpt5:", "gpt2, hf, llama"]),
    "no override": (GLOBAL + "defaults:\n  - /optim: adamw\n", ["scale=mine", "optim"]),
    "no package": ("trainer:\n  steps: 5\n", ["scale=mine:", "# @package _global_"]),
    "empty": ("", ["scale=mine:", "# @package _global_"]),
    "list": ("- a\n", ["scale=mine:", "# @package _global_"]),
    "open bracket": (SMOKE + "trainer:\n  steps: [5\n", ["mine.yaml: line 6:", "not valid YAML"]),
    "tab": (SMOKE + "trainer:\n\tsteps: 5\n", ["mine.yaml: line 5:", "not valid YAML"]),
    "key twice": (SMOKE + "trainer:\n  steps: 5\n  steps: 6\n", ["mine.yaml: line 6:", "duplicate key steps"]),
    "not text": (GLOBAL + "experiment: \udcff\n", ["scale=mine", "utf-8"]),
}


@pytest.mark.parametrize("mistake", WRONG_FILES)
def test_one_line_for_a_wrong_scale_file(mistake: str, launch: Callable[..., Outcome], tmp_path: Path) -> None:
    text, expected = WRONG_FILES[mistake]
    folder = tmp_path / "conf" / "scale"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_bytes(text.encode(errors="surrogateescape"))
    error = launch("--config-dir", str(folder.parent), "scale=mine").only_error()
    assert [part for part in expected if part not in error] == [], error


@pytest.mark.parametrize(
    "arguments", [("data=wikitex",), ("trainer.step=5",), ("model.n_head=3",), ("trainer.steps=0",), ("--foo",)]
)
def test_errors_are_reported_before_heavy_imports(arguments: tuple[str, ...], tmp_path: Path) -> None:
    outcome = programs.launch("train.py", *arguments, cwd=tmp_path)
    assert (outcome.code, outcome.out, outcome.heavy) == (2, "", set())
    assert outcome.err.startswith("error: ")


@pytest.mark.parametrize("field", ["token=shraed", "position=releasd", "multiplier=yran"])
def test_unknown_temperature_terms_are_refused_before_importing_torch(field: str, tmp_path: Path) -> None:
    outcome = programs.launch("train.py", f"model.temperature.query.{field}", cwd=tmp_path)
    assert (outcome.code, outcome.out, outcome.heavy) == (2, "", set())
    assert outcome.err.startswith(f"error: model.temperature.query.{field}: not one of the choices, did you mean ")
    assert "; valid: none, " in outcome.err


@pytest.mark.parametrize(
    ("sweep", "error"),
    {
        "optim.lr=7,0,abc": "[optim.lr=0 scale=smoke] optim.lr=0: out of range; valid: > 0; 2 of 3",
        "data.tokenizer=bpe-512,bpe-x": "[data.tokenizer=bpe-x scale=smoke] data.tokenizer=bpe-x: bpe-N needs N from 2",
        "model/size=nano,llama3-8b": "[model/size=llama3-8b scale=smoke] model/size=llama3-8b: only with model=llama",
        "resume=nowhere,null": "[resume=nowhere scale=smoke] nowhere is not a run folder",
    }.items(),
)
def test_a_sweep_with_a_wrong_job_starts_none(sweep: str, error: str, launch: Callable[..., Outcome]) -> None:
    said = launch("-m", sweep, "scale=smoke").only_error()
    assert f"error: {error}" in said
    assert " jobs refused, none started" in said


def test_a_sweep_with_a_wrong_option_starts_no_job(launch: Callable[..., Outcome]) -> None:
    assert "data=wikitex:" in launch("-m", "data=pydocs,wikitex", "trainer.steps=0").only_error()


def test_help_lists_and_describes_every_option(tmp_path: Path) -> None:
    outcome = programs.launch("train.py", "--help", cwd=tmp_path)
    assert (outcome.code, outcome.err, outcome.heavy) == (0, "", set())
    lines = outcome.out.splitlines()
    for file in (ROOT / "conf").glob("*/**/[!_]*.yaml"):
        group = file.parent.relative_to(ROOT / "conf").as_posix()
        start = next(number for number, line in enumerate(lines) if line.startswith(f"{group}="))
        described = next(line for line in lines[start:] if line.split()[:1] == [file.stem])
        assert len(described.split()) > 1, described
    keys = [key for key in leaves(Config) if key.rpartition(".")[2] not in {"name", "size", "scale", "init_hash"}]
    shown = [line for line in lines if re.match(r"  [\w.]+=", line)]
    assert sorted(line.split("=")[0].strip() for line in shown) == sorted(keys)
    assert max(map(len, lines)) <= 100


def test_help_on_one_group_section_or_key(tmp_path: Path) -> None:
    def page(*arguments: str) -> list[str]:
        return programs.launch("train.py", *arguments, cwd=tmp_path).out.splitlines()

    optim = page("--help", "optim")
    assert optim[0] == "optim=  (default: adamw)"
    assert "  optim.weight_decay=NUMBER matrices and embeddings only (>= 0; default: 0.1)" in optim
    assert not any(line.startswith("  trainer.") for line in optim)
    assert page("--help", "model/temperature") == page("--help", "model.temperature")
    (key,) = [line for line in page("--help", "trainer.compile") if "=" in line]
    assert key == "  trainer.compile=true|false|auto"
    refused = programs.launch("train.py", "--help", "trainer.step", cwd=tmp_path)
    assert refused.code == 2
    assert refused.err.startswith(
        "error: --help trainer.step: no such group or key, did you mean trainer.steps?; valid: model,"
    )


@pytest.mark.parametrize("arguments", ["--help", "--cfg job"])
def test_a_closed_pipe_is_no_error(arguments: str, tmp_path: Path) -> None:
    command = f"{sys.executable} {TRAIN} {arguments} | true"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_cfg_prints_the_composed_config(launch: Callable[..., Outcome]) -> None:
    outcome = launch("--cfg", "job", "--resolve", "scale=smoke", "trainer.batch_size=6")
    assert outcome.code == 0
    assert yaml.safe_load(outcome.out)["trainer"]["micro_batch_size"] == 6


def test_an_interrupt_before_training_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: DictConfig) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", [TRAIN])
    assert cli.command_line(interrupted, lambda _: None, lambda _: None, program="train.py", purpose="") == 130
    assert capfd.readouterr() == ("", "interrupted\n")
