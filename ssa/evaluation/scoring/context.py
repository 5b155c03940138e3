"""Evaluation context: the model and a journal of finished requests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ssa.errors import NotFinite
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.scoring.scoring import Request, Score, in_batches, input_tokens, score_requests
from ssa.files import append, hash_of, locked
from ssa.model.generation import generate
from ssa.progress import ProgressBar


class Journal:
    """Append-only log of finished requests, one JSON line with a checksum each, so that an interrupted task resumes.

    ``identity`` is everything that determines the answers: each has its own file, created with the first answer.
    """

    def __init__(self, folder: Path, task: str, identity: object) -> None:
        self.path, self._unfinished = folder / f".{task}.{hash_of([identity])[:12]}.journal", _unfinished(folder, task)
        self._answers = self._read()

    @classmethod
    @contextmanager
    def exclusive(cls, folder: Path, task: str, identity: object, *, of_all: bool = False) -> Iterator[Self]:
        """The journal, locked within the block, with ``of_all`` for every identity; refused while another holds it."""
        lock = folder / (f".{task}.lock" if of_all else f".{task}.{hash_of([identity])[:12]}.lock")
        with locked(lock, in_use=f"{folder}: task {task} is already running in another process"):
            yield cls(folder, task, identity)

    def get(self, request: object) -> Any:
        """The answer to a request; None if there is none yet."""
        return self._answers.get(self._key(request))

    def add(self, answers: list[tuple[object, Any]]) -> None:
        """Append (request, answer) pairs; on return the operating system has them."""
        lines = {self._key(request): answer for request, answer in answers}
        self._answers |= lines
        self.path.parent.mkdir(parents=True, exist_ok=True)
        texts = (json.dumps([key, answer, self._checksum(key, answer)]) for key, answer in lines.items())
        append(self.path, "".join(f"{text}\n" for text in texts).encode())

    def begin_files(self) -> None:
        """From now until `remove` the task's own files may be those of another outcome than the newest saved one."""
        self._unfinished.parent.mkdir(parents=True, exist_ok=True)
        self._unfinished.touch()

    @staticmethod
    def has_unfinished_files(folder: Path, task: str) -> bool:
        return _unfinished(folder, task).exists()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self._unfinished.unlink(missing_ok=True)

    @staticmethod
    def _key(request: object) -> str:
        return hash_of([request])[:32]

    @staticmethod
    def _checksum(key: str, answer: Any) -> str:
        return hash_of([key, answer])[:8]

    def _read(self) -> dict[str, Any]:
        """The file's answers: cut off a last line torn by a kill, skip damaged lines, whose requests are rerun."""
        answers: dict[str, Any] = {}
        if not self.path.exists():
            return answers
        *lines, torn = self.path.read_bytes().split(b"\n")
        if torn:
            os.truncate(self.path, self.path.stat().st_size - len(torn))
        for line in lines:
            with suppress(ValueError, TypeError, RecursionError):
                key, answer, checksum = json.loads(line)
                if checksum == self._checksum(key, answer):
                    answers[key] = answer
        return answers


def _unfinished(folder: Path, task: str) -> Path:
    return folder / f".{task}.unfinished"


@dataclass(frozen=True)
class EvaluationContext:
    """Everything a task needs to evaluate one model.

    Attributes:
        evaluated: the model.
        folder: the model's ``evaluation/`` folder, for files besides the outcome.
        journal: answers to finished requests.
        progress: the task's progress bar.
        batch_size: rows per batch; None: automatic.
    """

    evaluated: EvaluatedModel
    folder: Path
    journal: Journal
    progress: ProgressBar
    batch_size: int | None = None

    def score(self, requests: Sequence[Request], max_length: int | None = None) -> list[Score]:
        """The log-likelihood of each continuation, computed unless it is in the journal.

        Args:
            requests: in any order.
            max_length: maximum input length; longer inputs are truncated on the left.  None: the context of the model.
        """
        max_length = max_length or self.evaluated.context_length
        answers: list[Any] = [self.journal.get([*request, max_length]) for request in requests]
        answered = {number for number, answer in enumerate(answers) if answer is not None}
        lengths = list(map(input_tokens, requests))
        self.progress.expect(sum(lengths) - sum(lengths[number] for number in answered))

        def keep(scores: list[tuple[int, Score]]) -> None:
            new = [(number, list(score)) for number, score in scores if number not in answered]
            for number, score in new:
                answers[number] = score
            self.journal.add([([*requests[number], max_length], score) for number, score in new])
            self.progress.advance(sum(lengths[number] for number, _ in new))

        score_requests(self.evaluated, requests, max_length, self.batch_size, keep, answered)
        return [Score(*answer) for answer in answers]

    def score_units(self, units: Sequence[Sequence[Request]], max_length: int | None = None) -> list[list[Score]]:
        """The scores of each unit, such as the windows of a document; see `score`."""
        scores = iter(self.score([request for unit in units for request in unit], max_length))
        return [[next(scores) for _ in unit] for unit in units]

    def generate(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        *,
        stop: Collection[int] = (),
        ended: Callable[[list[int]], bool] = lambda tokens: False,
        label: str = "",
    ) -> list[list[int]]:
        """Greedy continuations, generated unless they are in the journal, longest prompts first.

        Args:
            prompts: token ids, at least one each.
            max_new_tokens: maximum length of each continuation.
            stop: ids that end a continuation, and are not part of it.
            ended: called with the new tokens after each step; true ends the continuation.
            label: distinguishes these requests from others with the same prompts in the journal.
        """
        key = [max_new_tokens, sorted(stop), label]
        answers: list[Any] = [self.journal.get([prompt, *key]) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]), reverse=True)
        lengths = [len(prompts[number]) + max_new_tokens for number in order]
        self.progress.expect(
            sum(length for length, number in zip(lengths, order, strict=True) if answers[number] is None)
        )

        def run(indices: list[int]) -> None:
            numbers = [order[index] for index in indices]
            if all(answers[number] is not None for number in numbers):
                return  # as batches are the same in every attempt, so are the answers
            chosen = [prompts[number] for number in numbers]
            try:
                with self.evaluated.autocast():
                    new = generate(self.evaluated.model, chosen, max_new_tokens, greedy=True, stop=stop, ended=ended)
            except FloatingPointError as error:
                raise NotFinite(*error.args) from None
            self.progress.advance(sum(lengths[index] for index in indices if answers[order[index]] is None))
            for number, tokens in zip(numbers, new, strict=True):
                answers[number] = tokens
            self.journal.add([([prompt, *key], tokens) for prompt, tokens in zip(chosen, new, strict=True)])

        in_batches(run, lengths, self.evaluated.device, self.batch_size)
        return [list(answer) for answer in answers]
