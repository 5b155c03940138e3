"""Evaluation context: the model and a journal of finished requests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssa.evaluation.scoring.batching import in_batches
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.scoring.journal import Journal
from ssa.evaluation.scoring.progress import TaskProgress
from ssa.evaluation.scoring.scoring import Request, Score, input_tokens, score_requests
from ssa.model.generation import generate


@dataclass(frozen=True)
class EvaluationContext:
    """One task's evaluation of one model.

    Attributes:
        evaluated: the model.
        folder: for files besides the outcome: ``evaluation/`` of the evaluated's folder.
        journal: the answers so far.
        progress: of the task.
        batch_size: rows at once; None: as many as suit the device.
    """

    evaluated: EvaluatedModel
    folder: Path
    journal: Journal
    progress: TaskProgress
    batch_size: int | None = None

    def score(self, requests: Sequence[Request], max_length: int | None = None) -> list[Score]:
        """The log-likelihood of each continuation; what the journal has is not computed again.

        Args:
            requests: in any order.
            max_length: the longest input in tokens; longer ones are cut on the left.  None: the context of the model.
        """
        max_length = max_length or self.evaluated.context_length
        known: list[Any] = [self.journal.get([*request, max_length]) for request in requests]
        missing = [number for number, answer in enumerate(known) if answer is None]
        asked = [requests[number] for number in missing]
        self.progress.expect(sum(map(input_tokens, asked)))

        def keep(scores: list[tuple[int, Score]]) -> None:
            for place, score in scores:
                known[missing[place]] = list(score)
            self.journal.add([([*asked[place], max_length], list(score)) for place, score in scores])
            self.progress.advance(sum(input_tokens(asked[place]) for place, _ in scores))

        score_requests(self.evaluated, asked, max_length, self.batch_size, keep)
        return [Score(*answer) for answer in known]

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        *,
        stop: Collection[int] = (),
        ended: Callable[[list[int]], bool] | None = None,
        label: str = "",
    ) -> list[list[int]]:
        """Greedy continuations, longest prompts first; what the journal has is not generated again.

        Args:
            prompts: token ids, at least one each.
            max_new_tokens: of each.
            stop: ids that end a row, and are not part of it.
            ended: called with the new tokens of a row after each one: whether it ends there.
            label: what tells these requests from others of the task with the same prompts.
        """
        key = [max_new_tokens, sorted(stop), label]
        known: list[Any] = [self.journal.get([prompt, *key]) for prompt in prompts]
        missing = [number for number, answer in enumerate(known) if answer is None]
        missing.sort(key=lambda number: -len(prompts[number]))
        lengths = [len(prompts[number]) + max_new_tokens for number in missing]
        self.progress.expect(sum(lengths))

        def run(items: list[int]) -> None:
            numbers = [missing[item] for item in items]
            chosen = [prompts[number] for number in numbers]
            with self.evaluated.autocast():
                new = generate(self.evaluated.model, chosen, max_new_tokens, greedy=True, stop=stop, ended=ended)
            for number, tokens in zip(numbers, new, strict=True):
                known[number] = tokens
            self.journal.add([([prompt, *key], tokens) for prompt, tokens in zip(chosen, new, strict=True)])
            self.progress.advance(sum(lengths[item] for item in items))

        in_batches(run, lengths, self.evaluated.device, self.batch_size)
        return [list(answer) for answer in known]
