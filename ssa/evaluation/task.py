"""What a task is, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ssa.evaluation.scoring.context import EvaluationContext


@dataclass(frozen=True)
class Metric:
    """A number and its uncertainty.

    Attributes:
        value: the number.
        stderr: its standard error.
        low, high: its 95 % interval.
        higher_is_better: None where neither is.
    """

    value: float
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class Outcome:
    """What a task found.

    Attributes:
        metrics: by name.
        n: what was evaluated: documents, questions, prompts.
        counts: what metrics divide by, such as tokens, words and bytes.
        details: tables, as plain values.
        versions: of what the task is made of, besides this project.
    """

    metrics: Mapping[str, Metric]
    n: int
    counts: Mapping[str, int] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """Something to evaluate a model on.

    Attributes:
        name: as in ``tasks=``, and of the file its outcome goes to.
        settings: all that decides its numbers besides the model, as plain values.
        has_files: whether it writes files besides its outcome, which are those of the newest alone.
    """

    name: str
    settings: dict[str, Any]
    has_files: bool

    def run(self, context: EvaluationContext) -> Outcome:
        """Evaluate.

        Raises:
            UserError: what it needs cannot be had, or the model cannot do it.
        """
        ...
