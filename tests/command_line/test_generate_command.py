"""``generate.py``: continuations, temperatures, and one line for each mistake."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import programs
import pytest
import torch
import yaml
from conftest import ROOT

from ssa.config import Config
from ssa.export.folder import export
from ssa.model.generation import generate
from ssa.model.transformer import Transformer
from ssa.record.run_model import continue_text, load_run
from ssa.record.run_record import run_folder
from ssa.viz.temperature_map import shown, token_temperatures

GENERATE = str(ROOT / "generate.py")
PROMPT = "the import statement (a=b): é"


@pytest.fixture
def run(smoke: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps, made once; its temperatures start far from 1."""
    outputs = tmp_path_factory.getbasetemp() / "generate"
    settings = ["model=ssa_llama", "model.n_kv_head=1", "model.temperature.alpha_init=0.0", "trainer.device=cpu"]
    config = smoke(*settings, "trainer.steps=2", "optim.warmup_steps=0", f"output_dir={outputs}")
    folder = run_folder(config)
    if not (folder / "summary.json").exists():
        from ssa.training.train import train

        train(config)
    return folder


@pytest.fixture
def broken(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "broken"))


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Launch = Callable[..., Outcome]


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Launch:
    """``python generate.py ARGUMENTS`` in this process, from an empty folder."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def launch(*arguments: str) -> Outcome:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", [GENERATE, *arguments])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(GENERATE, run_name="__main__")
        return Outcome(int(exit_.value.code or 0), *capfd.readouterr())

    return launch


def test_prompt_and_continuation_are_printed(run: Path, launch: Launch) -> None:
    code, out, err = launch(f"run={run}", f"prompt={PROMPT}", "greedy=true", "max_new_tokens=12")
    _, model, tokenizer = load_run(run)
    assert not model.training
    ids = [tokenizer.end_of_text, *tokenizer.encode_batch([PROMPT])[0]]
    (new,) = generate(model, [ids], 12, greedy=True, stop=[tokenizer.end_of_text])
    assert (code, err) == (0, "")
    expected = PROMPT + tokenizer.decode(new)
    assert [shown(line) for line in out.split("\n")] == [shown(line) for line in f"{expected}\n".split("\n")]


def test_the_seed_determines_the_samples(run: Path, launch: Launch) -> None:
    def sampled(*arguments: str) -> str:
        return launch(f"run={run}", "prompt=", *arguments).out

    assert sampled("seed=1") == sampled("seed=1") != sampled("seed=2")
    assert sampled("seed=1", "top_p=0.001") == sampled("greedy=true")


def test_text_is_streamed(run: Path) -> None:
    _, model, tokenizer = load_run(run)
    pieces: list[str] = []
    ids = continue_text(model, tokenizer, PROMPT, 20, pieces.append)
    assert pieces[0] == PROMPT
    assert len(pieces) == len(ids) - len(tokenizer.encode_batch([PROMPT])[0]) + 1  # and what is left in the end
    assert "".join(pieces) == tokenizer.decode(ids[1:])


def test_logits_that_are_not_finite(broken: Path, launch: Launch) -> None:
    weights = broken / "checkpoints" / "best.ckpt"
    contents = torch.load(weights, weights_only=True)
    contents["model"]["head.weight"][7] = float("nan")
    torch.save(contents, weights)
    assert "best.ckpt: damaged, or changed since the run finished" in only_error(launch(f"run={broken}", "prompt=x"))
    (broken / "summary.json").unlink()  # with the checksums
    code, _, err = launch(f"run={broken}", f"prompt={PROMPT}")
    assert (code, err) == (
        2,
        "error: largest logit is nan: the model's weights are damaged, or its values overflow\n",
    )


def test_control_characters_of_a_prompt_are_not_printed(run: Path, launch: Launch) -> None:
    assert launch(f"run={run}", "prompt=a\x1b[31mb\tc", "max_new_tokens=0").out == "a␛[31mb\tc\n"


def test_show_prints_each_token_with_its_temperature(run: Path, launch: Launch) -> None:
    settings = (f"run={run}", f"prompt={PROMPT}", "max_new_tokens=5", "seed=3")
    _, model, tokenizer = load_run(run)
    ids = continue_text(model, tokenizer, PROMPT, 5, temperature=0.8, seed=3)
    plain = launch(*settings).out
    for choice in ({}, {"of": "value", "layer": 1}, {"head": 2}):
        out = launch(*settings, "show=temperature", *(f"{key}={value}" for key, value in choice.items())).out
        assert out.startswith(plain + "\n")
        view, _, legend = out.removeprefix(plain + "\n").rpartition("\n\n")
        numbers = [float(number) for number in re.findall(r"\[(-?\d+\.\d{3})\]", view)]
        assert numbers == pytest.approx(token_temperatures(model, ids, **choice), abs=6e-4)  # type: ignore[arg-type]
        assert "min " in legend
        assert max(numbers) - min(numbers) > 0.1


def test_html_is_written_and_its_path_printed(run: Path, launch: Launch, tmp_path: Path) -> None:
    code, out, _ = launch(f"run={run}", f"prompt={PROMPT}", "max_new_tokens=0", "html=view.html", "of=value")
    assert (code, out) == (0, f"{PROMPT}\nview.html\n")
    assert "Value temperature" in (tmp_path / "cwd" / "view.html").read_text(encoding="utf-8")


def test_png_is_written_and_its_path_printed(run: Path, launch: Launch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert launch(f"run={run}", "prompt=x", "max_new_tokens=0", "png=view.png") == (0, "x\nview.png\n", "")
    assert (tmp_path / "cwd" / "view.png").stat().st_size > 1000


def test_the_tokenizer_of_a_run_without_one_is_trained_again(broken: Path, run: Path, launch: Launch) -> None:
    (broken / "tokenizer.json").unlink(missing_ok=True)
    arguments = (f"prompt={PROMPT}", "greedy=true", "max_new_tokens=5")
    assert launch(f"run={broken}", *arguments) == launch(f"run={run}", *arguments)


def test_an_export_generates_as_its_run_does(run: Path, launch: Launch, tmp_path: Path) -> None:
    folder, _ = export(run, tmp_path / "exported")
    settings = (f"prompt={PROMPT}", "max_new_tokens=9", "seed=3", "show=temperature", "layer=1")
    expected = launch(f"run={run}", *settings)
    assert expected.code == 0
    assert launch(f"init_from={folder}", *settings) == expected


def test_a_pretrained_model_begins_and_ends_with_its_own_tokens(run: Path, launch: Launch, tmp_path: Path) -> None:
    folder, (_, model, tokenizer) = tmp_path / "model", load_run(run)
    export(run, folder)
    begin, end = 70, tokenizer.encode_batch(["a"])[0][0]
    names = {"bos_token": tokenizer.decode([begin]), "eos_token": {"content": tokenizer.decode([end])}}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    ids = [begin, *tokenizer.encode_batch([PROMPT])[0]]
    (new,) = generate(model, [ids], 9, greedy=True, stop=[end])
    done = launch(f"init_from={folder}", f"prompt={PROMPT}", "max_new_tokens=9", "greedy=true")
    assert (done.code, done.out) == (0, PROMPT + tokenizer.decode(new) + "\n")


def test_a_run_and_an_export_exclude_each_other(run: Path, launch: Launch, tmp_path: Path) -> None:
    one = "error: run, init_from: set exactly one: run=RUN_FOLDER, or init_from=FOLDER_OR_HUB_ID\n"
    for given in ([], [f"run={run}", f"init_from={tmp_path}"]):
        assert only_error(launch("prompt=x", *given)) == one
    assert f"a run folder; export it first: python export.py run={run}" in only_error(
        launch(f"init_from={run}", "prompt=x")
    )


WRONG = {
    "prompt": ["not KEY=VALUE"],
    "promt=x": ["promt:", "did you mean prompt?"],
    "temperature=0": ["temperature=0:", "valid: > 0"],
    "top_p=0": ["top_p=0:", "valid: > 0 and <= 1"],
    "max_new_tokens=-1": ["max_new_tokens=-1:", "valid: >= 0"],
    "device=gpu": ["device=gpu:", "valid: auto, cuda, mps, cpu"],
    "show=temperatures": ["show=temperatures:", "did you mean temperature?"],
    "html=nowhere/x.html": ["html=nowhere/x.html:", "existing folder"],
    "png=nowhere/x.png": ["png=nowhere/x.png:", "existing folder"],
    "png=x.jpg": ["png=x.jpg:", "ending in .png"],
    "layer=1": ["layer=1:", "needs show=temperature"],
}


def only_error(outcome: Outcome) -> str:
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1), outcome
    assert outcome.err.startswith("error: ")
    return outcome.err


@pytest.mark.parametrize("argument", WRONG)
def test_one_line_for_a_wrong_argument(argument: str, run: Path, launch: Launch) -> None:
    error = only_error(launch(f"run={run}", "prompt=x", argument))
    assert [part for part in WRONG[argument] if part not in error] == [], error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["of=key"], "of=key: not scaled in this model, model/temperature=ssa; valid: query, value"),
        (["layer=3"], "layer=3: no such layer of query; valid: 0 to 2"),
        (["of=value", "head=1"], "head=1: no such head of value; valid: 0"),
    ],
)
def test_one_line_for_missing_temperatures(arguments: list[str], message: str, run: Path, launch: Launch) -> None:
    assert only_error(launch(f"run={run}", "prompt=x", "show=temperature", *arguments)) == f"error: {message}\n"


def test_one_line_for_a_missing_device(run: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert only_error(launch(f"run={run}", "prompt=x", "device=cuda")).startswith("error: device=cuda: not available")


def made_by_hand(folder: Path, config: Config) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.plain()), encoding="utf-8")
    (folder / "checkpoints" / "best.ckpt").touch()
    return folder


def test_a_vanilla_run_has_no_temperatures(smoke: Callable[..., Config], launch: Launch, tmp_path: Path) -> None:
    folder = made_by_hand(tmp_path / "vanilla", smoke("model=gpt2"))
    for wish in ("show=temperature", "html=x.html"):
        assert "vanilla attention" in only_error(launch(f"run={folder}", "prompt=x", wish))


def test_one_line_beyond_the_learned_positions(
    run: Path, smoke: Callable[..., Config], launch: Launch, tmp_path: Path
) -> None:
    config = smoke("model=gpt2", "model.max_positions=64")
    folder = made_by_hand(tmp_path / "short", config)
    _, _, tokenizer = load_run(run)
    (folder / "tokenizer.json").write_text(tokenizer.definition, encoding="utf-8")
    model = Transformer(config.model, tokenizer.vocab_size)
    torch.save({"model": model.state_dict(), "config": config.plain(), "step": 0}, folder / "checkpoints" / "best.ckpt")
    error = only_error(launch(f"run={folder}", "prompt=", "max_new_tokens=64"))
    assert "max_new_tokens=64: with a prompt of 1 tokens over the model's 64 positions; valid: up to 63" in error
    assert launch(f"run={folder}", "prompt=", "max_new_tokens=63").code == 0


def test_one_line_for_a_folder_without_a_run(launch: Launch, tmp_path: Path) -> None:
    assert "nowhere is not a run folder" in only_error(launch("run=nowhere", "prompt=x"))
    (tmp_path / "config.json").write_text("{}")
    assert "exported model, not a run folder" in only_error(launch(f"run={tmp_path}", "prompt=x"))


def test_one_line_for_a_run_without_weights(broken: Path, launch: Launch) -> None:
    (broken / "checkpoints" / "best.ckpt").unlink()
    assert "has no checkpoints/best.ckpt yet" in only_error(launch(f"run={broken}", "prompt=x"))


@pytest.mark.parametrize("file", ["config.yaml", "tokenizer.json", "checkpoints/best.ckpt"])
def test_one_line_for_a_damaged_file(file: str, broken: Path, launch: Launch) -> None:
    path = broken / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if path.exists() else b"{")
    error = only_error(launch(f"run={broken}", "prompt=x"))
    assert str(path) in error
    assert "damaged" in error


@pytest.mark.parametrize("arguments", [["promt=x"], ["run=nowhere", "prompt=x"], ["init_from=./nowhere", "prompt=x"]])
def test_errors_are_reported_before_heavy_imports(arguments: list[str], tmp_path: Path) -> None:
    outcome = programs.launch("generate.py", *arguments, cwd=tmp_path)
    assert (outcome.code, outcome.out, outcome.heavy) == (2, "", set())
    assert outcome.err.startswith("error: ")
