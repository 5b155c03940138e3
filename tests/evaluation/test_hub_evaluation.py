"""WikiText from the Hub: denominators of its perplexities."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluated_models import write_model_folder

from ssa.evaluation.evaluate import evaluate
from ssa.evaluation.settings import EvaluateSettings

pytestmark = pytest.mark.hub
WORDS, DOCUMENTS = 241_211, 62


def test_all_of_wikitext(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    names = ("perplexity", "perplexity_lm_eval", "perplexity_hf_strided", "wikitext")
    values = {"init_from": str(write_model_folder(tmp_path / "model", "llama")), "context": 256, "stride": 256}
    settings = {**values, "text": "wikitext", "tasks": list(names), "output_dir": str(tmp_path / "out")}
    results = evaluate(EvaluateSettings.model_validate(settings))
    assert {results[name]["counts"]["words"] for name in names} == {WORDS}
    documents = {name: results[name]["counts"]["documents"] for name in names}
    assert documents.pop("perplexity_hf_strided") == 1, "joined, in one piece"
    assert set(documents.values()) == {DOCUMENTS}
    assert results["wikitext"]["counts"]["words_divided_by"] == WORDS + 2 * DOCUMENTS
    assert capsys.readouterr().out.count("241,211 words") == len(names)
    values = [results[name]["metrics"]["bits_per_byte"]["value"] for name in names]
    assert max(values) / min(values) < 1.1  # one model and text, three conventions
