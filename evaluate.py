"""Evaluate a trained or pretrained model: ``python evaluate.py run=RUN_FOLDER tasks=...``; see ``--help``."""

from __future__ import annotations

import sys

from ssa.command_line import preflight
from ssa.command_line.settings import program
from ssa.evaluation.settings import EvaluateSettings
from ssa.imports import preload


def run(settings: EvaluateSettings) -> None:
    """Check files and folders, then evaluate."""
    preflight.check_evaluate(settings)
    preload("ssa.evaluation.evaluate")  # imports torch, which takes seconds
    from ssa.evaluation.evaluate import evaluate

    evaluate(settings)


if __name__ == "__main__":
    sys.exit(
        program(
            EvaluateSettings,
            run,
            name="evaluate.py",
            purpose="Evaluate a model: perplexity, lm-evaluation-harness, passkey retrieval, attention statistics.",
            examples=(
                "run=outputs/main/RUN_ID",
                "run=outputs/main/RUN_ID tasks=paper",
                "init_from=HuggingFaceTB/SmolLM2-135M tasks=wikitext,piqa limit=200",
                "run=outputs/main/RUN_ID tasks=length,passkey lengths=256,512,1024",
                "run=outputs/main/RUN_ID tasks=perplexity_hf_strided text=wikitext stride=128",
            ),
            files={
                "ssa/evaluation/evaluate.py": "runs the tasks and prints the table",
                "ssa/evaluation/settings.py": "the keys above",
                "ssa/evaluation/tasks/": "perplexity, length, passkey, lm-evaluation-harness",
                "ssa/evaluation/attention/": "the attention report",
                "ssa/evaluation/results.py": "result files, evaluation/TASK.json in the run folder",
            },
        )
    )
