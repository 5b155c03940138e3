"""Results of a sweep: table, CSV file."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.table import Column, Table

from ssa.files import to_csv, write_atomic
from sweeps.declaration import Sweep

_BEST = 5
STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "interrupted",
}


def ranked(study: optuna.Study, sweep: Sweep) -> list[FrozenTrial]:
    """Finished trials, the best first; equal runs once."""
    sign = 1 if sweep.direction == "minimize" else -1
    finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    finished.sort(key=lambda trial: (sign * (trial.value or 0.0), trial.number))
    return list({trial.user_attrs.get("run_id", trial.number): trial for trial in reversed(finished)}.values())[::-1]


def counted(study: optuna.Study) -> str:
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    return ", ".join(f"{states.count(state)} {word}" for state, word in STATES.items() if states.count(state))


def table(study: optuna.Study, sweep: Sweep) -> Table:
    best = ranked(study, sweep)
    columns = [Column(name, overflow="fold") for name in ("trial", sweep.metric, *sweep.space, "run id")]
    shown = Table(*columns, title=f"best of {counted(study)}", title_justify="left")
    for trial in best[:_BEST]:
        values = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in trial.params.values()]
        shown.add_row(str(trial.number), f"{trial.value:.5g}", *values, str(trial.user_attrs.get("run_id", "")))
    return shown


def write(study: optuna.Study, sweep: Sweep, folder: Path) -> Path:
    """Writes ``trials.csv``, one row per trial: state, metric, values, run id."""
    rows: list[list[object]] = [["trial", "state", sweep.metric, *sweep.space, "last_step", "run_id", "note"]]
    for trial in study.get_trials(deepcopy=False):
        values = [trial.params.get(key, "") for key in sweep.space]
        value = "" if trial.value is None or trial.state != TrialState.COMPLETE else trial.value
        known = [trial.user_attrs.get(name, "") for name in ("run_id", "note")]
        last = "" if trial.last_step is None else trial.last_step
        rows.append([trial.number, STATES.get(trial.state, ""), value, *values, last, *known])
    write_atomic(folder / "trials.csv", to_csv(rows))
    return folder / "trials.csv"
