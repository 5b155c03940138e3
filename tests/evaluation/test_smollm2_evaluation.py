"""SmolLM2-135M in lm-evaluation-harness: the same answers as from its ``hf`` backend.

SSA_SMOLLM2 names the folder that holds the model; data comes from the Hub.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ssa.errors import UserError
from ssa.evaluation.evaluate import evaluate
from ssa.evaluation.settings import EvaluateSettings
from ssa.evaluation.tasks.harness import quiet, task_manager

FOLDER = os.environ.get("SSA_SMOLLM2", "")
pytestmark = [pytest.mark.hub, pytest.mark.skipif(not FOLDER, reason="SSA_SMOLLM2 is not set")]
CONTEXT = 1024
LIMITS = {"lambada_openai": 6, "piqa": 6, "winogrande": 6, "arc_easy": 4, "arc_challenge": 4, "wikitext": 1}


@pytest.fixture(scope="module")
def theirs() -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=FOLDER, dtype="float32", batch_size=4, device="cpu", max_length=CONTEXT)


def backend_results(model: Any, task: str, limit: int) -> Any:
    """Results of the harness with its own model class."""
    from lm_eval.evaluator import evaluate as harness_evaluate

    with quiet():
        found = task_manager(all_tasks=False).load([task])
        found["tasks"][task].set_config(key="num_fewshot", value=0)
        return harness_evaluate(model, found, limit=limit, bootstrap_iters=0, log_samples=True)


@pytest.mark.parametrize("task", LIMITS)
def test_matches_hf_backend(task: str, theirs: Any, tmp_path: Path) -> None:
    limit = LIMITS[task]
    settings = {"init_from": FOLDER, "tasks": [task], "limit": limit, "context": CONTEXT, "batch_size": "4"}
    ours = evaluate(EvaluateSettings.model_validate({**settings, "output_dir": str(tmp_path)}))[task]
    wanted = backend_results(theirs, task, limit)
    for (number, found), sample in zip(ours["details"]["samples"][task], wanted["samples"][task], strict=True):
        assert number == sample["doc_id"]
        assert len(found) == len(sample["filtered_resps"])
        for one, other in zip(found, sample["filtered_resps"], strict=True):
            if task == "wikitext":
                assert one == pytest.approx(other, rel=1e-5)
            else:
                assert one[0] == pytest.approx(other[0], abs=1e-3)
                assert one[1] == other[1]
    for name, metric in ours["metrics"].items():
        exact = "acc" in name
        assert metric["value"] == pytest.approx(wanted["results"][task][f"{name},none"], rel=0 if exact else 5e-4)


def test_paper_columns_with_available_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """HellaSwag and standard LAMBADA are unavailable in CI: two errors, and other outcomes are saved."""
    values = {"init_from": FOLDER, "tasks": ["lambada_standard", "winogrande", "hellaswag"], "limit": 1, "context": 256}
    with pytest.raises(UserError, match="2 of 3 failed: lambada_standard, hellaswag"):
        evaluate(EvaluateSettings.model_validate({**values, "output_dir": str(tmp_path)}))
    assert list(tmp_path.glob("pretrained/*/evaluation/winogrande.json"))
    out = capsys.readouterr().out
    assert "error: tasks=lambada_standard: data unavailable" in out
    assert "error: tasks=hellaswag: data unavailable" in out


def test_wikitext_word_counts(tmp_path: Path) -> None:
    """The harness's task equals perplexity_lm_eval, detokenized, on the same document."""
    values = {"init_from": FOLDER, "text": "wikitext", "limit": 1, "context": 512, "output_dir": str(tmp_path)}
    names = ["perplexity_lm_eval", "wikitext"]
    ours, theirs = evaluate(
        EvaluateSettings.model_validate({**values, "tasks": names, "detokenize": "wikitext"})
    ).values()
    words = ours["counts"]["words"]
    assert theirs["counts"]["words"] == words
    assert theirs["counts"]["words_divided_by"] == words + 2  # white space at both ends of the document
    bits = theirs["metrics"]["bits_per_byte"]["value"]
    assert ours["metrics"]["bits_per_byte"]["value"] == pytest.approx(bits, rel=1e-6)
