"""Tasks by their names."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from ssa.errors import UserError
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.settings import EvaluateSettings
from ssa.evaluation.task import Task
from ssa.evaluation.tasks.harness import PAPER, HarnessTask
from ssa.evaluation.tasks.perplexity import CONVENTIONS, Perplexity

_OTHERS = {  # module and class
    "length": ("tasks.length", "Length"),
    "passkey": ("tasks.passkey", "Passkey"),
    "attention": ("attention.report", "Attention"),
}
OURS = (*CONVENTIONS, *_OTHERS)
GROUPS = {"paper": tuple(PAPER)}


def names(tasks: Sequence[str]) -> list[str]:
    """The names, groups replaced by their members, each once.

    Raises:
        UserError: there is none.
    """
    if not tasks:
        raise UserError(f"tasks=: names none; valid: {', '.join((*OURS, *GROUPS))}, or of lm-evaluation-harness")
    return list(dict.fromkeys(task for name in tasks for task in GROUPS.get(name, (name,))))


def task(name: str, settings: EvaluateSettings, evaluated: EvaluatedModel) -> Task:
    """A task, ready to run.

    Raises:
        UserError: there is no such task, or it cannot be done with these settings or this model.
    """
    if name in CONVENTIONS:
        return Perplexity(name, settings, evaluated)
    if name in _OTHERS:
        module, kind = _OTHERS[name]
        made: Task = getattr(import_module(f"ssa.evaluation.{module}"), kind)(settings, evaluated)
        return made
    return HarnessTask(name, settings, (*OURS, *GROUPS))
