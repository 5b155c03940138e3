"""An Optuna study of training runs: which trial comes next, what it came to, and what a kill leaves behind.

Each trial is a run of ``train.py``, a process of its own in a run folder like any other, found by its run id: what has
finished is not run again, what was interrupted goes on.  The study is in an SQLite file, so that the same command goes
on after any stop.  A trial's next values depend on the seed, its number and the trials before it, and on nothing else.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess

import optuna
from optuna.trial import FrozenTrial, TrialState

from ssa.errors import EXIT_INTERRUPTED, UserError
from ssa.launch.run import Run, start
from ssa.record.run_files import load_status, read_rows, read_summary
from sweeps.declaration import Sweep, typed
from sweeps.study import sampler

_POLL_SECONDS = 0.5
_PRUNED = "pruned_at"  # of a trial: the pruner has decided, also if a kill comes before the run has ended


@dataclass
class Active:
    """A trial whose run is going on, here or, where ``process`` is None, in a process that an earlier sweep left."""

    trial: optuna.Trial
    run: Run
    process: BaseProcess | None
    rows: int = 0
    pruned: bool = False
    reported: set[int] = field(default_factory=set)  # steps


@dataclass
class Search:
    """Trials of a study until there are ``trials``.

    Attributes:
        say: told a line for each trial that has ended.
        beat: called twice a second.
    """

    study: optuna.Study
    sweep: Sweep
    common: tuple[str, ...]  # overrides of every trial
    trials: int
    jobs: int
    say: Callable[[str], None]
    beat: Callable[[Search], None]

    def __post_init__(self) -> None:
        known = self.study.get_trials(deepcopy=False)
        if self.sweep.sampler.name == "grid":
            self.trials = min(self.trials, len(self.sweep.points()))
        self.begun = len(known)
        self.left_behind = [trial for trial in known if trial.state == TrialState.RUNNING]
        self.ended = {trial.user_attrs["run_id"]: trial for trial in known if trial.state.is_finished()}
        self.active: list[Active] = []
        self.twins: list[tuple[optuna.Trial, Run]] = []  # of active ones: they come to the same
        self.stopped = 0

    def finish(self) -> None:
        """Runs what is missing.

        Raises:
            UserError: the metric is not one of a run.
            KeyboardInterrupt: passed on, once the runs have saved where they are; their trials stay to be gone on with.
        """
        try:
            while True:
                self._fill()
                if not self.active:
                    return
                for active in list(self.active):
                    self._look_at(active)
                self.beat(self)
                time.sleep(_POLL_SECONDS)
        except BaseException:
            for active in self.active:
                self._stop(active)
            for process in filter(None, (active.process for active in self.active)):
                process.join()
            raise

    def _fill(self) -> None:
        while len(self.active) < self.jobs:
            number = self.left_behind[0].number if self.left_behind else self.begun
            self.study.sampler = sampler(self.sweep, number)
            if self.left_behind:  # the same trial again: Optuna has no public way but its id
                trial = optuna.Trial(self.study, self.left_behind.pop(0)._trial_id)
            elif self.begun < self.trials:
                self.begun += 1
                trial = self.study.ask()
            else:
                return
            values = {key: dimension.suggest(trial, key) for key, dimension in self.sweep.space.items()}
            self._begin(trial, Run((*self.common, *typed(values)), f"trial {trial.number}"))

    def _begin(self, trial: optuna.Trial, run: Run) -> None:
        try:
            run_id = run.config.run_id
        except UserError as error:  # values that do not go together
            trial.set_user_attr("run_id", f"none-{trial.number}")
            self._tell(trial, run, TrialState.FAIL, note=str(error))
            return
        trial.set_user_attr("run_id", run_id)
        if run_id in self.ended:
            self._tell_as(trial, run, self.ended[run_id])
        elif any(active.run.folder == run.folder for active in self.active):
            self.twins.append((trial, run))
        else:
            known = self.study.get_trials(deepcopy=False)[trial.number]
            pruned = _PRUNED in known.user_attrs
            process = None if pruned or run.is_in_use() or run.is_finished() else start(run)
            active = Active(trial, run, process, pruned=pruned, reported=set(known.intermediate_values))
            self.active.append(active)
            if pruned:
                self._stop(active)

    def _look_at(self, active: Active) -> None:
        """Reports what is new of a run, stops it if the pruner says so, and ends its trial if it has ended."""
        run, process = active.run, active.process
        alive = run.is_in_use() if process is None else process.is_alive()
        finished = run.is_finished()
        self._report(active, may_stop=not finished)
        if alive:
            return
        code = process.exitcode if process else None
        if finished:
            self._end(active, *self._value(run))
        elif active.pruned:
            self._end(active, TrialState.PRUNED)
        elif run.is_in_use():  # another's, which was faster
            active.process = None
        elif process is None:
            active.process = start(run)
        elif (error := _error(run)).startswith("TrainingDiverged"):
            self._end(active, TrialState.PRUNED, note=error)
        elif code == EXIT_INTERRUPTED:
            self.active.remove(active)
            self.stopped += 1
            self.say(f"{run.label}: interrupted from outside; the same command goes on with it")
        else:
            self._end(active, TrialState.FAIL, note=f"{run.last_line}  ({run.log})")

    def _report(self, active: Active, may_stop: bool) -> None:
        with suppress(UserError, OSError):
            rows = read_rows(active.run.folder)
            new, active.rows = rows[active.rows :], len(rows)
            for row in new:
                value, step = row.get(self.sweep.metric), int(row["step"])
                if value is None or step in active.reported or active.pruned:
                    continue  # what a pruned run still does until it ends is not to decide later trials
                active.trial.report(float(value), step)
                active.reported.add(step)
                last = step >= active.run.config.trainer.steps
                if may_stop and not last and active.trial.should_prune():
                    active.pruned = True
                    active.trial.set_user_attr(_PRUNED, step)
                    self._stop(active)

    def _stop(self, active: Active) -> None:
        """Asks a run to save where it is and end."""
        if active.process is not None:
            active.process.terminate()
        else:
            with suppress(UserError, OSError):
                status = load_status(active.run.folder)
                if active.run.is_in_use() and status.host == socket.gethostname():
                    os.kill(status.pid, signal.SIGTERM)

    def _value(self, run: Run) -> tuple[TrialState, float | None, str]:
        summary = read_summary(run.folder)
        value = summary.get(self.sweep.metric)
        if not isinstance(value, int | float):
            known = ", ".join(name for name, found in summary.items() if isinstance(found, int | float))
            raise UserError(f"metric={self.sweep.metric}: not in summary.json; valid: {known}")
        if math.isnan(value):
            return TrialState.FAIL, None, f"{self.sweep.metric} is not a number  ({run.folder})"
        return TrialState.COMPLETE, float(value), ""

    def _end(self, active: Active, state: TrialState, value: float | None = None, note: str = "") -> None:
        self.active.remove(active)
        frozen = self._tell(active.trial, active.run, state, value, note)
        for twin in [twin for twin in self.twins if twin[1].folder == active.run.folder]:
            self.twins.remove(twin)
            self._tell_as(*twin, frozen)

    def _tell_as(self, trial: optuna.Trial, run: Run, other: FrozenTrial) -> None:
        value = other.value if other.state == TrialState.COMPLETE else None
        self._tell(trial, run, other.state, value, f"the same run as trial {other.number}")

    def _tell(
        self, trial: optuna.Trial, run: Run, state: TrialState, value: float | None = None, note: str = ""
    ) -> FrozenTrial:
        if note:
            trial.set_user_attr("note", note)
        frozen = self.study.tell(trial, value, state=state)
        self.ended.setdefault(frozen.user_attrs["run_id"], frozen)
        word = {TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}.get(
            state, f"{self.sweep.metric} {value}"
        )
        values = " ".join(typed(frozen.params))
        self.say(f"{run.label}: {word}  {values}{f'  ({note})' if note and state != TrialState.FAIL else ''}")
        if state == TrialState.FAIL:
            self.say(f"  {note}")
        return frozen


def _error(run: Run) -> str:
    with suppress(UserError):
        return load_status(run.folder).error or ""
    return ""
