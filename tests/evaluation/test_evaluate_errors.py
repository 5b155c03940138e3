"""``evaluate.py`` on pretrained models, and errors: one line each, and other tasks still run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import programs
import pytest
import tokenizers
import torch
import yaml
from evaluated_models import EVERYTHING, TEXTS, evaluated_model, tokenizer_json, write_model_folder
from evaluation_programs import Launch, Outcome, evaluate_in_process, tokens_in
from pretrained_folders import VOCAB, overflowing, write_model

from ssa.config import Config
from ssa.errors import UserError
from ssa.evaluation.tasks import harness
from ssa.model.transformer import Transformer
from ssa.record.run_record import run_folder
from ssa.text.tokenization import END_OF_TEXT, Tokenizer, train_bpe

launch = pytest.fixture(evaluate_in_process)


@pytest.fixture
def run(smoke: Callable[..., Config], tmp_path: Path) -> Path:
    """A run folder without training."""
    config = smoke("model=gpt2", "trainer.device=cpu")
    folder = run_folder(config)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.plain()), encoding="utf-8")
    (folder / "environment.json").write_text('{"precision": "32-true"}')
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    tokenizer = Tokenizer("test", tokenizer_json())
    model = Transformer(config.model, tokenizer.vocab_size)
    torch.save({"model": model.state_dict(), "config": config.plain(), "step": 0}, folder / "checkpoints" / "best.ckpt")
    return Path(shutil.move(folder, tmp_path / "run"))


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A folder in Hugging Face format, with learned positions."""
    write_model(tmp_path / "tiny-gpt2", "gpt2")
    (tmp_path / "tiny-gpt2" / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    return tmp_path / "tiny-gpt2"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "a text.txt"
    path.write_text(TEXTS[0][:3000])
    return path


@pytest.fixture
def small_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Index only the paper's tasks; all 15,000 take ten seconds."""
    pytest.importorskip("lm_eval")
    indexed = harness.task_manager
    monkeypatch.setattr(harness, "task_manager", lambda all_tasks: indexed(False))


def refused(outcome: Outcome) -> str:
    """The one-line error before any task runs."""
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome
    assert outcome.err.startswith("error: ")
    return outcome.err


def failures(outcome: Outcome) -> list[str]:
    """The error line of each failed task; that of the only task ends the program."""
    lines = [line for line in outcome.out.splitlines() if line.startswith("error: ")]
    if not lines:
        return [refused(outcome).removesuffix("\n")]
    assert refused(outcome).startswith(f"error: tasks: {len(lines)} of ")
    assert "Traceback" not in outcome.out
    return lines


def test_pretrained_model_on_text_files(pretrained: Path, text: Path, launch: Launch, tmp_path: Path) -> None:
    tasks = ("perplexity", "perplexity_lm_eval", "perplexity_hf_strided", "length")
    code, out, err = launch(
        f"init_from={pretrained}", f"tasks={','.join(tasks)}", f"text={text}", f"output_dir={tmp_path}/out"
    )
    assert (code, err) == (0, "")
    (folder,) = tmp_path.glob("out/pretrained/tiny-gpt2-*/evaluation")
    assert str(folder) in out
    assert {path.name for path in folder.iterdir()} == {f"{task}.json" for task in tasks}
    found = {task: json.loads((folder / f"{task}.json").read_text()) for task in tasks}
    tokens = tokens_in(Tokenizer("test", tokenizer_json()), [text.read_text()])
    assert {task: result["counts"]["tokens"] - tokens for task, result in found.items()} == {
        "perplexity": 1,
        "perplexity_lm_eval": 0,
        "perplexity_hf_strided": -(-tokens // 64) * -1,
        "length": 1,
    }
    by_length = {f"{k}perplexity/{n}" for k in ("", "tail_") for n in (16, 32, 64)}
    assert set(found["length"]["metrics"]) == {*by_length, "tail_loss/1x"}
    assert {result["model"]["precision"] for result in found.values()} == {"32-true"}
    assert {result["counts"]["bytes"] for result in found.values()} == {len(text.read_bytes())}


PREFIXES: dict[str, tuple[dict[str, object], str]] = {
    "bos": ({"tokenizer_config.json": {"bos_token": "a", "eos_token": "b"}}, "a"),
    "bos in full": ({"tokenizer_config.json": {"bos_token": {"content": "a", "special": True}}}, "a"),
    "eos": ({"tokenizer_config.json": {"bos_token": None, "eos_token": "b"}}, "b"),
    "bos that is no token": ({"tokenizer_config.json": {"bos_token": "<nothing>", "eos_token": {"content": "b"}}}, "b"),
    "the other file": ({"tokenizer_config.json": {}, "special_tokens_map.json": {"bos_token": "c"}}, "c"),
    "the first file before": (
        {"tokenizer_config.json": {"eos_token": "b"}, "special_tokens_map.json": {"bos_token": "c"}},
        "b",
    ),
    "neither": ({"tokenizer_config.json": {"eos_token": 3}}, END_OF_TEXT),
    "no file": ({}, END_OF_TEXT),
}


@pytest.mark.parametrize("case", PREFIXES)
def test_prefix_token(case: str, pretrained: Path, tmp_path: Path) -> None:
    files, token = PREFIXES[case]
    evaluated = evaluated_model(pretrained)
    for name, content in files.items():
        (pretrained / name).write_text(json.dumps(content))
    assert evaluated.prefix == evaluated.tokenizer.token_id(token)
    assert evaluated.prefix_text == evaluated.plain["prefix_token"] == token
    elsewhere = evaluated_model(
        write_model_folder(tmp_path / "other", "llama"), tokenizer=str(pretrained / "tokenizer.json")
    )
    assert elsewhere.prefix == evaluated.prefix  # the prefix follows the tokenizer


@pytest.mark.parametrize("content", [b"{", b"\xff{}", b"[]", b"3"])
def test_damaged_tokenizer_config(content: bytes, pretrained: Path) -> None:
    (pretrained / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer_config\.json is damaged"):
        _ = evaluated_model(pretrained).prefix


def test_prefix_of_a_run_is_end_of_text(run: Path, launch: Launch) -> None:
    (run / "tokenizer_config.json").write_text(json.dumps({"bos_token": "a"}))
    assert launch(f"run={run}", "tasks=perplexity_lm_eval").code == 0
    assert json.loads((run / "evaluation/perplexity_lm_eval.json").read_text())["model"]["prefix_token"] == END_OF_TEXT


@pytest.mark.usefixtures("small_index")
def test_unknown_task_does_not_stop_others(run: Path, launch: Launch) -> None:
    outcome = launch(f"run={run}", "tasks=perplexty,length,lambada_openia,perplexity")
    first, second = failures(outcome)
    assert first.startswith("error: tasks=perplexty: no such task, did you mean perplexity?")
    assert second.startswith("error: tasks=lambada_openia: no such task, did you mean lambada_openai?")
    assert outcome.err == "error: tasks: 2 of 4 failed: perplexty, lambada_openia\n"
    assert {path.name for path in (run / "evaluation").iterdir()} == {"length.json", "perplexity.json"}


@pytest.mark.usefixtures("small_index")
@pytest.mark.parametrize("name", ["nothing like it", "piqa|boolq", "/etc/passwd", "task.yaml", "*"])
def test_unknown_task_names(name: str, run: Path, launch: Launch) -> None:
    (line,) = failures(launch(f"run={run}", f"tasks={name}"))
    assert line.startswith(f"error: tasks={name}: no such task; valid: perplexity, ")


def test_missing_harness(run: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    first, second = failures(launch(f"run={run}", "tasks=piqa,perplexity,perplexty"))
    assert first == "error: tasks=piqa: needs lm-evaluation-harness 0.4.13 or later: pip install -e '.[eval]'"
    assert "did you mean perplexity?" in second
    (detokenized,) = failures(launch(f"run={run}", "tasks=perplexity_lm_eval", "detokenize=wikitext"))
    assert "pip install -e '.[eval]'" in detokenized


def test_truncated_weights(run: Path, launch: Launch) -> None:
    weights = run / "checkpoints" / "best.ckpt"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    (line,) = failures(launch(f"run={run}", "tasks=perplexity"))
    assert str(weights) in line
    assert "damaged" in line


def test_log_likelihoods_that_are_not_finite(run: Path, tmp_path: Path, text: Path, launch: Launch) -> None:
    folder = write_model_folder(tmp_path / "huge", "llama", max_positions=256)
    overflowing(folder)
    tasks = ["perplexity", "perplexity_lm_eval", "length", "passkey", "attention"]
    arguments = (f"init_from={folder}", f"text={text}", f"output_dir={tmp_path}/out", "trials=1")
    lines = failures(launch(*arguments, f"tasks={','.join(tasks)}"))
    quantities = ["log-likelihood"] * 3 + ["largest logit", r"attention_\w+/layer_\d+"]
    reason = "the model's weights are damaged, or its values overflow"
    for task, quantity, line in zip(tasks, quantities, lines, strict=True):
        assert re.fullmatch(f"error: tasks={task}: {quantity} is nan: {reason}", line), line
    assert not list(tmp_path.glob("out/**/*.json"))


def test_a_statistic_that_is_not_a_number_fails_only_its_task(
    pretrained: Path, text: Path, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssa.evaluation.tasks.length.exp_or_inf", lambda loss: float("nan"))
    arguments = (f"init_from={pretrained}", f"text={text}", f"output_dir={tmp_path}/out")
    (line,) = failures(launch(*arguments, "tasks=length,perplexity", "lengths=16"))
    assert line.startswith("error: tasks=length: perplexity/16 is nan: ")
    assert [path.name for path in tmp_path.glob("out/**/*.json")] == ["perplexity.json"]


def test_a_saved_outcome_that_is_not_a_number(pretrained: Path, text: Path, launch: Launch, tmp_path: Path) -> None:
    arguments = (f"init_from={pretrained}", f"text={text}", f"output_dir={tmp_path}/out", "tasks=perplexity")
    assert launch(*arguments).code == 0
    (path,) = tmp_path.glob("out/**/perplexity.json")
    result = json.loads(path.read_text())
    result["metrics"]["loss"]["value"] = "NaN"
    path.write_text(json.dumps(result))
    assert failures(launch(*arguments))[0].startswith("error: tasks=perplexity: loss is nan: ")
    assert launch(*arguments, "rerun=true").code == 0


def test_damaged_tokenizer(run: Path, launch: Launch) -> None:
    path = run / "tokenizer.json"
    path.write_text(tokenizer_json()[:1000])
    assert f"{path} is damaged" in refused(launch(f"run={run}"))


def test_damaged_outcome(run: Path, launch: Launch) -> None:
    assert launch(f"run={run}", "tasks=perplexity").code == 0
    path = run / "evaluation" / "perplexity.json"
    kept = path.read_text()
    path.write_text(kept[: len(kept) // 2])
    found = launch(f"run={run}", "tasks=perplexity,length", "lengths=16")
    assert found.code == 0
    assert f"note: {path} is damaged" in found.out
    assert "evaluated again" in found.out
    assert json.loads(path.read_text())["metrics"] == json.loads(kept)["metrics"]
    assert "perplexity: finished before" in launch(f"run={run}", "tasks=perplexity").out


def test_tokenizer_larger_than_the_model(run: Path, pretrained: Path, launch: Launch, tmp_path: Path) -> None:
    larger = tmp_path / "tokenizer.json"
    larger.write_text(train_bpe(iter(TEXTS[:30]), VOCAB + 100))
    found = refused(launch(f"init_from={pretrained}", f"tokenizer={larger}"))
    assert found.startswith(f"error: tokenizer={larger}: 700 tokens; valid: up to model.vocab_size=600")
    shutil.copy(larger, run / "tokenizer.json")
    (line,) = failures(launch(f"run={run}", "tasks=perplexity"))
    assert [
        part
        for part in ("tokenizer.json: 700 tokens, but the model has 550", "not the tokenizer of this run")
        if part not in line
    ] == []


def test_other_tokenizer(pretrained: Path, text: Path, launch: Launch, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer.json"
    other.write_text(train_bpe(iter(TEXTS[30:]), 300))
    arguments = (f"init_from={pretrained}", "tasks=perplexity", f"text={text}")
    for extra in ([], [f"tokenizer={other}"]):
        assert launch(*arguments, *extra).code == 0
    (file,) = Path().glob("outputs/pretrained/tiny-gpt2-*/evaluation/perplexity.json")
    result = json.loads(file.read_text())
    counts = [one["counts"]["tokens"] for one in (result, *result["others"])]
    assert counts[0] > counts[1] + 100


def lowercased() -> str:
    """The tokenizer of the models, without capitals."""
    inner = tokenizers.Tokenizer.from_str(tokenizer_json())
    inner.normalizer = tokenizers.normalizers.Lowercase()
    return str(inner.to_str())


def test_a_tokenizer_that_loses_text(pretrained: Path, text: Path, launch: Launch, tmp_path: Path) -> None:
    (pretrained / "tokenizer.json").write_text(lowercased())
    outcome = launch(f"init_from={pretrained}", "tasks=perplexity", f"text={text}", f"output_dir={tmp_path}/out")
    assert outcome.code == 0
    assert "perplexity: the tokenizer loses text: 1 of 1 sampled documents differ after decoding, 0.0%" in outcome.out
    assert re.search(r"bits_per_byte +– ", outcome.out)
    (path,) = tmp_path.glob("out/**/perplexity.json")
    result = json.loads(path.read_text())
    assert set(result["metrics"]) == {"loss", "perplexity"}
    del result["details"]["loss_of_text"]  # as of an earlier version, which did not know
    result["metrics"]["bits_per_byte"] = {"value": 0.1}
    path.write_text(json.dumps(result))
    again = launch(f"init_from={pretrained}", "tasks=perplexity", f"text={text}", f"output_dir={tmp_path}/out").out
    assert "finished before" not in again
    assert re.search(r"bits_per_byte +– ", again)


WRONG: dict[str, tuple[list[str], str]] = {
    "neither": (["tasks=perplexity"], "run, init_from: set exactly one"),
    "both": (["run=x", "init_from=y"], "run, init_from: set exactly one"),
    "batch_size=0": (["run=x", "batch_size=0"], "batch_size=0: valid: auto, or a positive integer"),
    "batch_size=-1": (["run=x", "batch_size=-1"], "batch_size=-1: valid: auto, or a positive integer"),
    "batch_size=many": (["run=x", "batch_size=many"], "batch_size=many: valid: auto, or a positive integer"),
    "limit": (["run=x", "limit=0"], "limit=0: out of range; valid: > 0"),
    "key": (["run=x", "task=perplexity"], "task: unknown key, did you mean tasks?"),
    "detokenize": (["run=x", "detokenize=yes"], "detokenize=yes: not one of the choices; valid: none, wikitext"),
    "tokenizer of a run": (
        ["run=x", "tokenizer=gpt2"],
        "tokenizer=gpt2: a run has its own tokenizer; valid with init_from",
    ),
    "no run": (["run=nowhere"], "nowhere is not a run folder"),
    "no files": (["init_from=x", "text=nowhere/*.txt"], "text=nowhere/*.txt: matches no file (from "),
    "depth": (["run=x", "depths=0,2"], "depths=2: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_arguments(case: str, launch: Launch) -> None:
    arguments, message = WRONG[case]
    outcome = launch(*arguments)
    assert message in refused(outcome)
    assert outcome.out == ""


FAILING: dict[str, tuple[list[str], str]] = {
    "text=test": (["text=test"], "text=test: a split of a run; valid for a pretrained model: wikitext, or files"),
    "stride": (["text=x.txt", "stride=65"], "stride=65: would skip tokens; valid: up to context=64"),
    "detokenize": (["text=x.txt", "detokenize=wikitext"], "detokenize=wikitext: valid for tasks=perplexity_lm_eval"),
    "lengths": (
        ["tasks=length", "text=x.txt", "lengths=32,65"],
        "lengths=65: exceeds the model's learned positions",
    ),
    "short lengths": (["tasks=length", "text=x.txt", "lengths=3"], "lengths=3: out of range; valid: >= 4"),
}


@pytest.mark.parametrize("case", FAILING)
def test_unsupported_settings_of_a_task(case: str, pretrained: Path, launch: Launch) -> None:
    arguments, message = FAILING[case]
    tasks = [] if "tasks=length" in arguments else ["tasks=perplexity"]
    Path("x.txt").write_text("words")
    (line,) = failures(launch(f"init_from={pretrained}", *tasks, *arguments))
    assert line.startswith(f"error: {message}"), line


def test_learned_positions_limit_the_context(pretrained: Path, text: Path, launch: Launch) -> None:
    arguments = ("tasks=perplexity", "context=65", f"text={text}")
    assert refused(launch(f"init_from={pretrained}", *arguments)).startswith(
        "error: context=65: exceeds the model's learned positions; valid: up to 64"
    )
    rotary = write_model_folder(text.parent / "rotary", "llama", EVERYTHING)
    assert launch(f"init_from={rotary}", *arguments).code == 0


def test_empty_text(pretrained: Path, launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (line,) = failures(launch(f"init_from={pretrained}", "tasks=perplexity", f"text={tmp_path}/empty.txt"))
    assert line.endswith("empty.txt: no text")


def test_invalid_key_is_reported_before_heavy_imports(tmp_path: Path) -> None:
    outcome = programs.launch("evaluate.py", "taks=perplexity", cwd=tmp_path)
    assert (outcome.code, outcome.out, outcome.heavy) == (2, "", set())
    assert "did you mean tasks?" in outcome.err
