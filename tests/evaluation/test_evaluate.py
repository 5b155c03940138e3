"""``evaluate.py`` on trained runs: agreement with training, saved outcomes, resumption after a kill."""

from __future__ import annotations

import json
import math
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import programs
import pytest
import torch
from evaluation_programs import Launch, evaluate_in_process, tokens_in
from tiny_runs import MODEL

from ssa.config import Config
from ssa.evaluation.scoring import context
from ssa.evaluation.scoring.context import Journal
from ssa.record.run_files import read_summary
from ssa.record.run_model import load_run
from ssa.record.run_record import run_folder
from ssa.text.token_cache import prepare
from ssa.training.train import train

TINY = [*MODEL, "trainer.steps=4", "trainer.eval_every=2", "optim.warmup_steps=0", "trainer.batch_size=4"]
TINY += ["trainer.device=cpu"]
RUNS = {
    "plain": ["model=ssa_gpt2", "trainer.precision=32-true"],
    "bf16, documents apart": ["model=ssa_llama", "data.document_mask=true", "trainer.precision=bf16-mixed"],
}
launch = pytest.fixture(evaluate_in_process)


@pytest.fixture
def make_run(
    smoke: Callable[..., Config], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A function that copies one of `RUNS`, each trained once."""

    def make(name: str = "plain") -> Path:
        config = smoke(*TINY, *RUNS[name], f"output_dir={tmp_path_factory.getbasetemp() / 'evaluate'}")
        folder = run_folder(config)
        if not (folder / "summary.json").exists():
            train(config)
        return Path(shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("last.ckpt")))

    return make


@pytest.fixture
def run(make_run: Callable[[str], Path]) -> Path:
    return make_run("plain")


def saved(folder: Path, task: str) -> dict[str, Any]:
    """The saved outcome of a task."""
    return dict(json.loads((folder / "evaluation" / f"{task}.json").read_text()))


def values(result: dict[str, Any]) -> dict[str, float]:
    return {name: metric["value"] for name, metric in result["metrics"].items()}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("text", "split"), [("test", "test"), ("validation", "val")])
def test_perplexity_matches_the_run(
    name: str, text: str, split: str, make_run: Callable[[str], Path], launch: Launch
) -> None:
    folder = make_run(name)
    code, out, err = launch(f"run={folder}", "tasks=perplexity", f"text={text}")
    assert (code, err) == (0, "")
    assert str(folder / "evaluation") in out
    summary, result = read_summary(folder), saved(folder, "perplexity")
    found = values(result)
    assert found["loss"] == pytest.approx(summary[f"best/{split}/loss"], rel=1e-6)  # the summary sums in float32
    for metric in ("perplexity", "word_perplexity", "bits_per_byte"):
        assert found[metric] == pytest.approx(summary[f"best/{split}/{metric}"], rel=1e-4)
    data = {"test": "test", "val": "validation"}[split]
    counts = {kind: summary[f"data.{data}.{kind}"] for kind in ("documents", "tokens", "words", "bytes")}
    assert result["counts"] == {**counts, "tokens": counts["tokens"] - 1}  # the first token is not predicted
    assert result["model"]["precision"] == summary["precision"]
    decided = {"text": text, "limit": None, "data_hash": summary["data_hash"], "stride": 64, "detokenize": "none"}
    assert result["settings"] == decided


def test_conventions_and_lengths(run: Path, launch: Launch) -> None:
    tasks = "perplexity_lm_eval,perplexity_hf_strided,perplexity,length"
    assert launch(f"run={run}", f"tasks={tasks}", "lengths=16,64").code == 0
    config, model, tokenizer = load_run(run)
    documents = list(prepare(config.data).split("test").texts())
    results = {task: saved(run, task) for task in tasks.split(",")}
    tokens = {task: result["counts"]["tokens"] for task, result in results.items()}
    assert tokens["perplexity_lm_eval"] == sum(map(len, tokenizer.encode_batch(documents)))
    (joined,) = tokenizer.encode_batch(["\n\n".join(documents)])
    assert tokens["perplexity_hf_strided"] == len(joined) - math.ceil(
        len(joined) / 64
    )  # disjoint windows skip their first token
    strided = values(results["perplexity_hf_strided"])
    n_bytes = results["perplexity_hf_strided"]["counts"]["bytes"]
    assert strided["bits_per_byte"] == pytest.approx(strided["loss"] * len(joined) / math.log(2) / n_bytes, rel=1e-9)
    stream = [tokenizer.end_of_text]
    for ids in tokenizer.encode_batch(documents):
        stream += [*ids, tokenizer.end_of_text]
    assert tokens["perplexity"] == tokens["length"] == len(stream) - 1
    by_length = values(results["length"])
    assert by_length["perplexity/64"] == pytest.approx(values(results["perplexity"])["perplexity"], rel=1e-6)
    full = torch.tensor(stream[: (len(stream) - 1) // 16 * 16])
    with torch.inference_mode():
        losses = model(full.view(-1, 16), torch.tensor(stream[1 : len(full) + 1]).view(-1, 16))
    assert math.exp(by_length["tail_loss/1x"]) == pytest.approx(by_length["tail_perplexity/64"], rel=1e-12)
    assert by_length["tail_perplexity/16"] == pytest.approx(losses[:, 12:].mean().exp().item(), rel=1e-5)
    for result in results.values():
        assert 1 < next(value for name, value in values(result).items() if "perplexity" in name) < 512


def test_skips_finished_tasks(run: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (f"run={run}", "tasks=perplexity")
    first = launch(*arguments)
    before = saved(run, "perplexity")

    def load(folder: Path) -> None:
        raise AssertionError("loads weights")

    with monkeypatch.context() as patch:
        patch.setattr("ssa.evaluation.scoring.evaluated_model.load_run", load)
        again = launch(*arguments)
        assert launch(*arguments, "rerun=true").code == 2
    assert again.code == 0
    assert "perplexity: finished before (rerun=true runs it again)" in again.out
    assert again.out.splitlines()[2:] == first.out.splitlines()[1:]  # the same table
    assert saved(run, "perplexity") == before
    assert "finished before" not in launch(*arguments, "rerun=true").out


def test_keeps_outcomes_of_other_settings(run: Path, launch: Launch) -> None:
    arguments = (f"run={run}", "tasks=perplexity")
    for extra in ([], ["limit=2"], ["stride=16", "limit=2"]):
        assert launch(*arguments, *extra).code == 0
    result = saved(run, "perplexity")
    assert [one["settings"]["limit"] for one in (result, *result["others"])] == [2, 2, None]
    assert [one["settings"]["stride"] for one in (result, *result["others"])] == [16, 64, 64]
    assert [one["n"] for one in (result, *result["others"])] == [2, 2, 4]
    assert len({values(one)["loss"] for one in (result, *result["others"])}) == 3
    assert "finished before" in launch(*arguments).out
    now = saved(run, "perplexity")
    assert [one["settings"]["limit"] for one in (now, *now["others"])] == [None, 2, 2], (
        "the requested outcome is on top"
    )


def test_rerun_replaces_outcome_of_same_settings(run: Path, launch: Launch) -> None:
    arguments = (f"run={run}", "tasks=perplexity")
    launch(*arguments)
    launch(*arguments, "limit=2")
    right = saved(run, "perplexity")
    (wrong,) = right["others"]
    loss = values(wrong)["loss"]
    wrong["metrics"]["loss"]["value"] = 1000.0
    (run / "evaluation" / "perplexity.json").write_text(json.dumps(right))
    assert "1000" in launch(*arguments).out
    assert "1000" not in launch(*arguments, "rerun=true").out
    result = saved(run, "perplexity")
    assert values(result)["loss"] == loss
    assert [one["settings"]["limit"] for one in result["others"]] == [2]


def test_keeps_outcomes_of_other_weights(run: Path, launch: Launch) -> None:
    arguments = (f"run={run}", "tasks=perplexity")
    launch(*arguments)
    weights = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(weights, weights_only=True)
    checkpoint["model"]["final_norm.weight"] *= 0.5
    torch.save(checkpoint, weights)
    (run / "summary.json").unlink()  # which knows the other weights
    assert "finished before" not in launch(*arguments).out
    result = saved(run, "perplexity")
    assert values(result)["loss"] != values(result["others"][0])["loss"]


def test_results_do_not_depend_on_batch_size(run: Path, launch: Launch) -> None:
    launch(f"run={run}", "tasks=perplexity,length", "batch_size=1")
    found = {task: values(saved(run, task)) for task in ("perplexity", "length")}
    assert "finished before" in launch(f"run={run}", "tasks=perplexity", "batch_size=8").out
    launch(f"run={run}", "tasks=perplexity,length", "batch_size=7", "rerun=true")
    for task, wanted in found.items():
        assert values(saved(run, task)) == pytest.approx(wanted, rel=1e-5)


def test_killed_evaluation_resumes(run: Path, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (f"run={run}", "tasks=perplexity", "stride=4", "batch_size=4")

    def written() -> bytes:
        return b"".join(path.read_bytes() for path in (run / "evaluation").glob(".perplexity.*.journal"))

    with programs.start("evaluate.py", *arguments, cwd=run) as process:
        deadline = time.monotonic() + 120
        while written().count(b"\n") < 20:
            assert process.code is None, process.printed
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send(signal.SIGKILL)
        assert process.ended() == -signal.SIGKILL
    done = written().count(b"\n")
    assert not (run / "evaluation" / "perplexity.json").exists()

    asked: list[int] = []
    score_requests = context.score_requests

    def counted(evaluated: Any, requests: Any, length: int, size: int | None, keep: Any, answered: set[int]) -> None:
        rows: list[int] = []
        score_requests(evaluated, requests, length, size, lambda some: (rows.append(len(some)), keep(some)), answered)
        asked.append(sum(rows))

    monkeypatch.setattr(context, "score_requests", counted)
    assert launch(*arguments).code == 0
    assert not written()
    resumed = saved(run, "perplexity")
    assert launch(*arguments, "rerun=true").code == 0
    undisturbed = saved(run, "perplexity")
    assert values(resumed) == values(undisturbed)
    assert asked == [asked[1] - done // 4 * 4, asked[1]], "batches of 4 that were torn are scored again"
    assert asked[0] > 0


def test_leftover_journal_of_a_killed_rerun(run: Path, launch: Launch) -> None:
    launch(f"run={run}", "tasks=perplexity")
    before = saved(run, "perplexity")
    left = Journal(run / "evaluation", "perplexity", {key: before[key] for key in ("settings", "model")}).path
    left.write_text("torn")
    assert "finished before" in launch(f"run={run}", "tasks=perplexity").out
    assert launch(f"run={run}", "tasks=perplexity", "rerun=true").code == 0
    assert values(saved(run, "perplexity")) == values(before)
    assert {path.name for path in (run / "evaluation").iterdir()} == {"perplexity.json"}


def test_keeps_outcomes_of_other_text_content(run: Path, launch: Launch, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    arguments = (f"run={run}", "tasks=perplexity", f"text={text}")
    for content in ("the import statement " * 30, "another text " * 30):
        text.write_text(content)
        assert "finished before" not in launch(*arguments).out
    assert "finished before" in launch(*arguments).out
    assert len(saved(run, "perplexity")["others"]) == 1


_SAVE = """
import sys
from pathlib import Path
from ssa.evaluation.results import save

folder, process = Path(sys.argv[1]), sys.argv[2]
for number in range(40):
    save(folder, {"task": "t", "settings": {"of": f"{process} {number}"}, "model": {}, "metrics": {}})
"""


def test_outcomes_saved_at_once_are_all_kept(tmp_path: Path) -> None:
    script, folder = tmp_path / "save.py", tmp_path / "saved"
    script.write_text(_SAVE)
    started = [programs.start(str(script), str(folder), process, cwd=tmp_path) for process in "abc"]
    assert [process.ended() for process in started] == [0, 0, 0], [process.printed for process in started]
    newest = json.loads((folder / "t.json").read_text())
    found = {result["settings"]["of"] for result in (newest, *newest["others"])}
    assert found == {f"{process} {number}" for process in "abc" for number in range(40)}
    assert {path.name for path in folder.iterdir()} == {"t.json"}


def test_task_running_in_another_process(run: Path, launch: Launch) -> None:
    arguments = (f"run={run}", "tasks=perplexity,length", "lengths=16")
    launch(*arguments)
    before = saved(run, "perplexity")
    identity = {key: before[key] for key in ("settings", "model")}
    with Journal.exclusive(run / "evaluation", "perplexity", identity):
        code, out, err = launch(*arguments, "rerun=true")
    assert (code, err) == (2, "error: tasks: 1 of 2 failed: perplexity\n")
    assert "task perplexity is already running in another process" in out
    assert launch(*arguments, "rerun=true").code == 0


def test_changed_data(run: Path, launch: Launch) -> None:
    environment = run / "environment.json"
    environment.write_text(json.dumps({**json.loads(environment.read_text()), "data_hash": "0123"}))
    code, out, err = launch(f"run={run}", "tasks=perplexity")
    assert code == 2
    assert "the data has changed since training (0123, now " in out + err


def test_text_files_and_longer_context(run: Path, launch: Launch, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"The import statement, number {number}. " * 40)
    arguments = (f"run={run}", "tasks=perplexity", f"text={tmp_path}/*.txt", "context=128")
    assert launch(*arguments).code == 0
    result = saved(run, "perplexity")
    tokenizer = load_run(run)[2]
    texts = [(tmp_path / f"{number}.txt").read_text() for number in range(3)]
    assert result["counts"]["tokens"] == tokens_in(tokenizer, texts) + 3
    assert (result["n"], result["counts"]["bytes"]) == (3, sum(map(len, texts)))
    assert result["model"]["context"] == result["settings"]["stride"] == 128
