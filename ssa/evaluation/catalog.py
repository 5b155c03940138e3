"""Tasks by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ssa.config import Config
from ssa.errors import UserError
from ssa.evaluation.attention.report import Attention
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel, check_length
from ssa.evaluation.settings import EvaluateSettings
from ssa.evaluation.task import Task
from ssa.evaluation.tasks.harness import PAPER, HarnessTask, index_with
from ssa.evaluation.tasks.length import Length
from ssa.evaluation.tasks.passkey import Passkey
from ssa.evaluation.tasks.perplexity import CONVENTIONS, Perplexity, check_settings

_OTHERS: dict[str, Callable[[EvaluateSettings, EvaluatedModel], Task]] = {
    task.name: task for task in (Length, Passkey, Attention)
}
OURS = (*CONVENTIONS, *_OTHERS)
GROUPS = {"paper": tuple(PAPER)}


def names(tasks: Sequence[str]) -> list[str]:
    """Unique task names, at least one, with groups replaced by their members."""
    if not tasks:
        raise UserError(f"tasks=: empty; valid: {', '.join((*OURS, *GROUPS))}, or tasks of lm-evaluation-harness")
    return list(dict.fromkeys(task for name in tasks for task in GROUPS.get(name, (name,))))


def check(settings: EvaluateSettings, runs: Iterable[Config]) -> None:
    """Refuse, before the runs are trained, what evaluation would refuse whatever their weights are.

    Raises:
        UserError: a task does not exist, or a setting does not suit it or the models.
    """
    chosen = names(settings.tasks)
    for name in chosen:
        if name not in OURS:
            index_with(name, (*OURS, *GROUPS))
    for run in runs:
        context = settings.context or run.data.block_size
        check_length(run.model, "context", context)
        for length in settings.lengths or ():
            check_length(run.model, "lengths", length)
        for name in set(CONVENTIONS) & set(chosen):
            check_settings(name, settings, context)


def task(name: str, settings: EvaluateSettings, evaluated: EvaluatedModel) -> Task:
    """Construct a task; refused if there is none, or if the settings or the model do not support it."""
    if name in CONVENTIONS:
        return Perplexity(name, settings, evaluated)
    if name in _OTHERS:
        return _OTHERS[name](settings, evaluated)
    return HarnessTask(name, settings, (*OURS, *GROUPS))
