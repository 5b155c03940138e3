"""The Optuna study of a declaration: file, sampler, pruner."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from ssa.errors import UserError, first_line
from ssa.record.inputs import Inputs, refuse_changes
from ssa.record.run_files import summary_name
from ssa.redaction import redacted
from sweeps.declaration import Pruner, Sweep


def open_study(folder: Path, name: str, sweep: Sweep, common: tuple[str, ...], inputs: Inputs) -> optuna.Study:
    """Opens the study in a folder, or creates it.

    Raises:
        UserError: it was created with another declaration or other inputs of its runs, or cannot be read.
    """
    declared = redacted({**sweep.model_dump(mode="json", exclude={"overrides"}), "overrides": list(common)})
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "study.db"
    try:
        study = optuna.create_study(
            study_name=name,
            storage=f"sqlite:///{file}",
            direction=sweep.direction,
            pruner=_pruner(sweep.pruner),
            load_if_exists=True,
        )
        before = study.user_attrs.get("declared")
        if before is None:
            study.set_user_attr("declared", before := declared)
        before["metric"] = summary_name(before["metric"])  # the study of an older version has the old one
        trials = study.get_trials()
        known = study.user_attrs.get("inputs", {}) if any(trial.state.is_finished() for trial in trials) else {}
        for trial in (trial for trial in trials if trial.state.is_finished()):
            float(trial.value or 0)
        known = {setting: dict(files) for setting, files in known.items()}
    except Exception as error:  # any of SQLAlchemy's classes, or of a damaged file
        raise UserError(f"{file}: damaged, locked or of another program: {_said(error)}") from None
    changed = [key for key in declared if before.get(key) != declared[key]]
    if changed:
        raise UserError(
            f"{changed[0]}: {folder} has {len(study.trials)} trials of another {changed[0]}; "
            "rename the file, or remove that folder"
        )
    refuse_changes(known, inputs, f"the trials in {folder}", f"remove {folder} to start over")
    study.set_user_attr("inputs", {**inputs, **known})
    return study


@contextmanager
def usable(folder: Path) -> Iterator[None]:
    """In this block an error of the study's file is one line.

    Raises:
        UserError: the file is damaged, or another program has locked it.
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        raise UserError(f"{folder / 'study.db'}: damaged, or locked by another program: {_said(error)}") from None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def sampler(sweep: Sweep, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of one trial: each has its own, so that a resumed sweep does not draw the same values again."""
    declared = sweep.sampler
    seed = int(np.random.SeedSequence((declared.seed, number)).generate_state(1)[0])
    if declared.name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=declared.startup_trials)
    random = optuna.samplers.RandomSampler(seed=seed)
    if declared.name == "random":
        return random
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        return optuna.samplers.PartialFixedSampler(sweep.points()[number], random)


def _pruner(declared: Pruner) -> optuna.pruners.BasePruner:
    if declared.name == "median":
        return optuna.pruners.MedianPruner(declared.startup_trials, declared.warmup_steps)
    if declared.name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(declared.min_steps, declared.reduction_factor)
    return optuna.pruners.NopPruner()
