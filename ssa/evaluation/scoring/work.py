"""What a task works with: the model, and answers that are kept as they come."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssa.evaluation.scoring.batching import in_batches
from ssa.evaluation.scoring.journal import Journal
from ssa.evaluation.scoring.progress import TaskProgress
from ssa.evaluation.scoring.scoring import Request, Score, input_tokens, score_requests
from ssa.evaluation.scoring.subject import Subject
from ssa.model.generation import generate


@dataclass(frozen=True)
class Work:
    """One task's evaluation of one model.

    Attributes:
        subject: the model.
        folder: for files besides the outcome: ``evaluation/`` of the subject's folder.
        journal: the answers so far.
        progress: of the task.
        batch_size: rows at once; None: as many as suit the device.
    """

    subject: Subject
    folder: Path
    journal: Journal
    progress: TaskProgress
    batch_size: int | None = None

    def score(self, requests: Sequence[Request], context: int | None = None) -> list[Score]:
        """The log-likelihood of each continuation; what the journal has is not computed again.

        Args:
            requests: in any order.
            context: the longest input, of a longer one the beginning is left out; None: the subject's.
        """
        context = context or self.subject.context
        known: list[Any] = [self.journal.get([*request, context]) for request in requests]
        missing = [number for number, answer in enumerate(known) if answer is None]
        asked = [requests[number] for number in missing]
        self.progress.expect(sum(map(input_tokens, asked)))

        def keep(scores: list[tuple[int, Score]]) -> None:
            for place, score in scores:
                known[missing[place]] = list(score)
            self.journal.add([([*asked[place], context], list(score)) for place, score in scores])
            self.progress.advance(sum(input_tokens(asked[place]) for place, _ in scores))

        score_requests(self.subject, asked, context, self.batch_size, keep)
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
            with self.subject.autocast():
                new = generate(self.subject.model, chosen, max_new_tokens, greedy=True, stop=stop, ended=ended)
            for number, tokens in zip(numbers, new, strict=True):
                known[number] = tokens
            self.journal.add([([prompt, *key], tokens) for prompt, tokens in zip(chosen, new, strict=True)])
            self.progress.advance(sum(lengths[item] for item in items))

        in_batches(run, lengths, self.subject.device, self.batch_size)
        return [list(answer) for answer in known]
