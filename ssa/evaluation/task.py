"""Evaluation tasks and their outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ssa.evaluation.scoring.context import EvaluationContext


@dataclass(frozen=True)
class Metric:
    """A value and its uncertainty.

    Attributes:
        value: the point estimate.
        stderr: standard error.
        low, high: 95 % confidence interval.
        higher_is_better: None if neither direction is.
    """

    value: float
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of a task.

    Attributes:
        metrics: by name.
        n: number of evaluated documents, questions or prompts.
        counts: denominators of the metrics: tokens, words, bytes.
        details: tables as plain values; ``loss_of_text``: why measures per word and byte are left out, or None.
        versions: versions of dependencies and data.
    """

    metrics: Mapping[str, Metric]
    n: int
    counts: Mapping[str, int] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """An evaluation task.

    Attributes:
        name: as in ``tasks=``; also names the outcome's file.
        settings: everything except the model that determines the numbers, as plain values.
        has_files: whether it also writes files, which always belong to the newest outcome.
    """

    name: str
    settings: dict[str, Any]
    has_files: bool

    def run(self, context: EvaluationContext) -> Outcome:
        """Evaluate the model.

        Raises:
            UserError: data is unavailable, or the model does not support the task.
        """
        ...
