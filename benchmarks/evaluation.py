"""Log-likelihoods as in multiple-choice tasks, beside the ``hf`` backend of lm-evaluation-harness, on one model."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch

from benchmarks.measure import Figure, interleaved, ratio, seconds
from benchmarks.settings import Settings
from ssa.evaluation.scoring.context import EvaluationContext, Journal
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.progress import ProgressBar
from ssa.text.tokenization import train_bpe

QUESTIONS, CHOICES = 60, 4
GOAL = "<= 1.0"


def figures(settings: Settings) -> list[Figure]:
    """Time of each backend, their ratio, and the largest difference of a log-likelihood."""
    with tempfile.TemporaryDirectory() as folder:
        _write_model(Path(folder) / "model")
        cases = {"ours": _ours(Path(folder)), "lm-eval hf": _theirs(Path(folder))}
        answers = {name: [pair[0] for pair in case()] for name, case in cases.items()}
        times = interleaved(cases, min(settings.rounds, 5), warmup=0)
    sizes = f"{QUESTIONS} questions of {CHOICES} choices"
    found = [seconds(f"{name}, {sizes}", values) for name, values in times.items()]
    found.append(ratio(f"ours / lm-eval hf, {sizes}", times["ours"], times["lm-eval hf"], GOAL))
    largest = max(abs(one - other) for one, other in zip(*answers.values(), strict=True))
    return [*found, Figure("largest difference of a log-likelihood", largest, "nats", goal="<= 0.001")]


def _requests() -> list[Any]:
    from lm_eval.api.instance import Instance

    draws, words = random.Random(0), " ".join(topics.values()).split()
    found: list[Any] = []
    for _ in range(QUESTIONS):
        start = draws.randrange(len(words) - 400)
        context = " ".join(words[start : start + draws.randrange(40, 160)])
        for _ in range(CHOICES):
            start = draws.randrange(len(words) - 20)
            choice = " " + " ".join(words[start : start + draws.randrange(2, 12)])
            found.append(Instance("loglikelihood", {}, (context, choice), len(found)))
    return found


def _write_model(folder: Path) -> None:
    """A GPT-2 of 6 layers with random weights, as transformers saves one."""
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder.mkdir()
    (folder / "tokenizer.json").write_text(train_bpe(iter(topics.values()), 4096))
    fast = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(fast), n_positions=512, n_embd=384, n_layer=6, n_head=6)
    config.bos_token_id = config.eos_token_id = fast.eos_token_id
    GPT2LMHeadModel(config).save_pretrained(folder)


def _ours(folder: Path) -> Callable[[], list[tuple[float, bool]]]:
    from ssa.evaluation.tasks.harness_model import HarnessModel

    evaluated = EvaluatedModel(init_from=str(folder / "model"), output_dir=str(folder))
    requests = _requests()

    def run() -> list[tuple[float, bool]]:
        with Journal.exclusive(folder, "benchmark", 0) as journal, ProgressBar("", 0, transient=True) as progress:
            found = HarnessModel(EvaluationContext(evaluated, folder, journal, progress, None)).loglikelihood(requests)
            journal.remove()
        return list(found)

    return run


def _theirs(folder: Path) -> Callable[[], list[tuple[float, bool]]]:
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(folder / "model"), device="cpu", dtype="float32", batch_size=16)
    requests = _requests()
    return lambda: list(model.loglikelihood(requests, disable_tqdm=True))
