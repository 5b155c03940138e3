"""A run folder and an export written by version 0.1 still work: old config keys, old summary names, old weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import programs
import pytest
import yaml
from programs import Process

from ssa.record.runs import load

OLD = Path(__file__).parent / "version_0_1"
RUN_ID = "ssa_gpt2-nano-ssa-text-s0-c68f2fcaf3"
TEST_LOSS = 5.5718984578051005  # recorded by version 0.1
CONTINUATION = "The modell n n n n noooooo"  # greedy, 12 tokens, by version 0.1


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The run folder where version 0.1 made it, beside its text."""
    shutil.copy(OLD / "corpus.txt", tmp_path)
    folder = tmp_path / "outputs" / "main" / RUN_ID
    shutil.copytree(OLD / "run", folder)
    return folder


def program(name: str, *arguments: str, cwd: Path) -> Process:
    """An ended program."""
    with programs.start(name, *arguments, cwd=cwd) as process:
        process.ended()
    return process


def test_the_files_are_of_the_old_format() -> None:
    model = yaml.safe_load((OLD / "run" / "config.yaml").read_text())["model"]
    assert {"width", "mlp_width", "tied_head"} <= set(model)
    assert model["temperature"]["query"]["base"] == "none"
    assert "val/loss" in json.loads((OLD / "run" / "summary.json").read_text())
    assert "width" in json.loads((OLD / "exported" / "config.json").read_text())["ssa"]


def test_evaluation_gives_the_recorded_loss(run: Path, tmp_path: Path) -> None:
    done = program("evaluate.py", f"run={run}", "tasks=perplexity", "rerun=true", "device=cpu", cwd=tmp_path)
    assert done.code == 0, done.err
    outcome = json.loads((run / "evaluation" / "perplexity.json").read_text())
    assert outcome["metrics"]["loss"]["value"] == pytest.approx(TEST_LOSS, abs=1e-6)


def test_a_saved_evaluation_is_repeated_once_with_the_same_result(run: Path, tmp_path: Path) -> None:
    """It was not checked that the tokenizer restores the text, on which bits per byte depend."""
    outcome = run / "evaluation" / "perplexity.json"
    saved = json.loads(outcome.read_text())["metrics"]
    for note in ("did not check for lost text; evaluated again", "perplexity: finished before"):
        done = program("evaluate.py", f"run={run}", "tasks=perplexity", "device=cpu", cwd=tmp_path)
        assert (done.code, done.err) == (0, "")
        assert note in done.out
    again = json.loads(outcome.read_text())["metrics"]
    assert again.keys() == saved.keys()
    for name, metric in again.items():
        assert metric["value"] == pytest.approx(saved[name]["value"], rel=1e-5)


def test_evaluation_of_an_old_export_gives_the_same_loss(run: Path, tmp_path: Path) -> None:
    arguments = [f"init_from={OLD / 'exported'}", "tasks=perplexity", f"text={tmp_path / 'corpus.txt'}", "context=32"]
    done = program("evaluate.py", *arguments, "device=cpu", f"output_dir={tmp_path / 'export'}", cwd=tmp_path)
    assert done.code == 0, done.err
    again = program("evaluate.py", f"run={run}", *arguments[1:], "device=cpu", cwd=tmp_path)
    assert again.code == 0, again.err
    outcomes = [json.loads(path.read_text()) for path in tmp_path.rglob("evaluation/perplexity.json")]
    losses = [outcome["metrics"]["loss"]["value"] for outcome in outcomes]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_generation_continues_the_text_as_it_did(run: Path, tmp_path: Path) -> None:
    done = program("generate.py", f"run={run}", "prompt=The model", "greedy=true", "max_new_tokens=12", cwd=tmp_path)
    assert done.code == 0, done.err
    assert CONTINUATION in done.out


def test_export_writes_the_weights_that_version_0_1_exported(run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    done = program("export.py", f"run={run}", f"to={tmp_path / 'exported'}", cwd=tmp_path)
    assert done.code == 0, done.err
    old, new = (load_file(folder / "model.safetensors") for folder in (OLD / "exported", tmp_path / "exported"))
    assert sorted(tensor.double().sum().item() for tensor in old.values()) == sorted(
        tensor.double().sum().item() for tensor in new.values()
    )


def test_the_run_store_translates_old_names(run: Path) -> None:
    runs = load(run.parent)
    assert list(runs.index) == [RUN_ID]
    row = runs.loc[RUN_ID]
    assert (row["status"], row["damage"]) == ("finished", "")
    assert row["config.model.d_model"] == 16
    assert row["config.data.validation_fraction"] == 0.1
    assert "config.model.width" not in runs
    assert row["best/val/loss"] == pytest.approx(5.570161966648899)
    assert row["best/test/loss"] == pytest.approx(5.57189820724603)
    assert "val/loss" not in runs


def test_the_report_shows_it(run: Path, tmp_path: Path) -> None:
    done = program("report.py", f"runs={tmp_path / 'outputs'}", f"to={tmp_path / 'report'}", cwd=tmp_path)
    assert done.code == 0, done.err
    page = (tmp_path / "report" / "index.html").read_text()
    assert RUN_ID in page
    assert "5.57" in page
