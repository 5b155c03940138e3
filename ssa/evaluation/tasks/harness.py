"""Tasks of lm-evaluation-harness, with its prompts and metrics.

https://github.com/EleutherAI/lm-evaluation-harness, 0.4; ``pip install -e '.[eval]'``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import os
import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssa.config_errors import closest
from ssa.errors import UserError, first_line
from ssa.evaluation.scoring.context import EvaluationContext
from ssa.evaluation.settings import EvaluateSettings
from ssa.evaluation.task import Metric, Outcome
from ssa.paths import install
from ssa.perplexity import OF_TEXT

# The columns of the paper's main table (arXiv 2411.12892, Table 3), and their folders in the harness.
PAPER = {
    "wikitext": "wikitext",
    "lambada_standard": "lambada",
    "lambada_openai": "lambada",
    "piqa": "piqa",
    "hellaswag": "hellaswag",
    "winogrande": "winogrande",
    "arc_easy": "arc",
    "arc_challenge": "arc",
}
_BOOTSTRAPS = 1000  # for standard errors of metrics other than means
_SEEDS = 0, 1234  # the harness's defaults, for Python; for NumPy, torch and few-shot examples


def check_installed(task: str, hint: str = "") -> None:
    """Refuse a task if the harness is not installed, or has an unsupported version."""
    is_installed = importlib.util.find_spec("lm_eval") is not None
    found = tuple(map(int, re.findall(r"\d+", version("lm_eval"))[:3])) if is_installed else (0,)
    if not (0, 4, 13) <= found < (0, 5):
        raise UserError(f"tasks={task}: needs lm-evaluation-harness 0.4.13 or later: {install('eval')}{hint}")


def wikitext_detokenizer(document: str) -> str:
    """Undo WikiText's tokenization with the harness's function."""
    check_installed("perplexity_lm_eval detokenize=wikitext")
    from lm_eval.tasks.wikitext import preprocess_wikitext

    return str(preprocess_wikitext.wikitext_detokenizer({"page": document}))


@functools.cache
def task_manager(all_tasks: bool) -> Any:
    """The harness's task index: 0.1 s for the tasks in `PAPER`, 10 s for all."""
    from lm_eval import tasks

    folder = Path(tasks.__file__).parent
    folders = [] if all_tasks else sorted({str(folder / name) for name in PAPER.values()})
    return tasks.TaskManager(include_path=folders, include_defaults=all_tasks)


def index_with(name: str, ours: Collection[str]) -> Any:
    """The harness's task index, which has the task; ``ours``: names of other tasks, for the message.

    Raises:
        UserError: there is no such task, or the harness is not installed.
    """
    check_installed(name, closest(name, ours))
    manager = task_manager(all_tasks=name not in PAPER)
    known = manager.task_index
    if name not in known:
        near = closest(name, [*ours, *PAPER]) or closest(name, [*ours, *known])
        raise UserError(
            f"tasks={name}: no such task{near}; valid: {', '.join(ours)}, or one of the "
            f"{len(known):,} of lm-evaluation-harness (lm_eval ls tasks)"
        )
    return manager


class HarnessTask:
    """A task, group or tag of the harness."""

    has_files = False

    def __init__(self, name: str, settings: EvaluateSettings, ours: Collection[str]) -> None:
        self.name, self._manager = name, index_with(name, ours)
        self.settings: dict[str, Any] = settings.model_dump(include={"limit", "num_fewshot"})
        self.settings["lm_eval"] = version("lm_eval")

    def run(self, context: EvaluationContext) -> Outcome:
        from lm_eval.evaluator import evaluate

        from ssa.evaluation.tasks.harness_model import HarnessModel

        with quiet():
            found = self._load()
            options = {"bootstrap_iters": _BOOTSTRAPS, "log_samples": True, "confirm_run_unsafe_code": False}
            model = HarnessModel(context)
            results = evaluate(model, found, limit=self.settings["limit"], **options)
        return _outcome(self.name, results, list(found["tasks"]), model.loss_of_text)

    def _load(self) -> Any:
        random.seed(_SEEDS[0])  # some tasks shuffle their choices on loading
        np.random.seed(_SEEDS[1])
        torch.manual_seed(_SEEDS[1])
        try:
            found = self._manager.load([self.name])
        except Exception as error:  # datasets and its transports raise many classes
            raise UserError(f"tasks={self.name}: data unavailable ({first_line(error)})") from None
        num_fewshot = self.settings["num_fewshot"]
        for task in found["tasks"].values():
            for flag, what in (("UNSAFE_CODE", "executes generated code"), ("MULTIMODAL", "contains images")):
                if getattr(task, flag, False):
                    raise UserError(f"tasks={self.name}: {what}, which is not supported here")
            if num_fewshot is not None and task.get_config("num_fewshot") != 0:
                task.set_config(key="num_fewshot", value=num_fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=_SEEDS[1])
        return found


def _outcome(name: str, results: Mapping[str, Any], tasks: Sequence[str], loss_of_text: str | None) -> Outcome:
    """Metrics by name, or ``task/name`` for a group's tasks; details hold the answers to each sample."""
    metrics: dict[str, Metric] = {}
    for task, values in results["results"].items():
        better = results["higher_is_better"].get(task, {})
        for key, value in values.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            if metric in OF_TEXT and loss_of_text:
                continue
            stderr = values.get(f"{metric}_stderr,{filter_name}")
            error = float(stderr) if isinstance(stderr, int | float) else None
            label = metric if filter_name == "none" else f"{metric},{filter_name}"
            label = label if task == name else f"{task}/{label}"
            metrics[label] = Metric(float(value), error, higher_is_better=better.get(metric))
    samples = results["samples"]
    answers = {task: [[sample["doc_id"], sample["filtered_resps"]] for sample in samples[task]] for task in tasks}
    return Outcome(
        metrics,
        n=sum(results["n-samples"][task]["effective"] for task in tasks),
        counts=_divisors(samples[name]) if name == "wikitext" else {},
        details={"samples": answers, "loss_of_text": loss_of_text},
        versions={"tasks": {task: results["versions"].get(task) for task in tasks}},
    )


def _divisors(samples: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Denominators of WikiText's metrics.  The harness counts white space at either end of a document as a word."""
    pages = [sample["doc"]["page"] for sample in samples]
    return {
        "documents": len(pages),
        "words_divided_by": sum(sample["word_perplexity"][1] for sample in samples),
        "words": sum(len(page.split()) for page in pages),
        "bytes": sum(sample["bits_per_byte"][1] for sample in samples),
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress progress bars, prints and logs of libraries, as tasks have their own progress bar."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"  # no process pool for a second of arithmetic
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        os.environ.pop("DISABLE_MULTIPROC", None)
