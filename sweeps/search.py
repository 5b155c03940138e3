"""An Optuna study of training runs: next trial, report and pruning of runs in progress, results, recovery after a kill.

Each trial is a run of ``train.py`` in its own process and run folder, found by its run id: what has finished is not run
again, what was interrupted is resumed.  The study is an SQLite file, so the same command resumes it after any stop.  A
trial's values depend on nothing but the seed, its number and the trials before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from ssa.errors import EXIT_DISK, EXIT_INTERRUPTED, UserError
from ssa.launch.pool import changed
from ssa.launch.run import Run
from ssa.processes import Pool
from ssa.record.run_files import read_rows, read_summary
from ssa.redaction import redact
from sweeps.declaration import Sweep, as_overrides
from sweeps.results import STATES
from sweeps.study import sampler

_PRUNED = "pruned_at"  # user attribute of a trial: the pruner has decided, even if a kill comes before the run ends


@dataclass
class Active:
    """A trial whose run is in progress, and the steps reported to Optuna."""

    trial: optuna.Trial
    pruned: bool
    reported: set[int]


@dataclass
class Search:
    """Trials of a study until there are ``trials``.

    Attributes:
        common: overrides of every trial.
        say: called with a line for each trial that has ended.
        on_poll: called twice a second.
    """

    study: optuna.Study
    sweep: Sweep
    common: tuple[str, ...]
    trials: int
    jobs: int
    say: Callable[[str], None]
    on_poll: Callable[[], None]

    def __post_init__(self) -> None:
        if self.sweep.sampler.name == "grid":
            self.trials = min(self.trials, len(self.sweep.points()))
        self.known = self.study.get_trials(deepcopy=False)
        self.ended = {trial.user_attrs.get("run_id", ""): trial for trial in self.known if trial.state.is_finished()}
        self.active: dict[Run, Active] = {}
        self.twins: list[tuple[optuna.Trial, Run]] = []  # trials of the same run as an active one
        self.interrupted = 0
        self.stopped: list[str] = []  # trials that were killed, or found the disk full; they can be resumed

    def finish(self) -> None:
        """Runs the missing trials.

        Raises:
            UserError: the metric is not one of a run.
            KeyboardInterrupt: passed on, once the runs have saved a checkpoint; their trials can be resumed.
        """
        with Pool[Run](self.jobs) as pool:
            try:
                for run, code in pool.run(self._runs(), lambda: self._look_at(pool)):
                    self._collect(run, code)
            except BaseException:
                for run in pool.active:
                    pool.stop(run)  # those that an earlier sweep left behind, too
                raise

    def _runs(self) -> Iterator[Run]:
        """The runs of interrupted trials, then of new ones until there are enough."""
        interrupted = [trial.number for trial in self.known if trial.state == TrialState.RUNNING]
        for number in [*interrupted, *range(len(self.known), self.trials)]:
            self.study.sampler = sampler(self.sweep, number)
            if number < len(self.known):  # to resume a trial, Optuna has no public way but its id
                trial = optuna.Trial(self.study, self.known[number]._trial_id)
            else:
                trial = self.study.ask()
            values = {key: dimension.suggest(trial, key) for key, dimension in self.sweep.space.items()}
            run = Run((*self.common, *as_overrides(values)), setting=f"trial {trial.number}")
            if self._begin(trial, run):
                yield run

    def _begin(self, trial: optuna.Trial, run: Run) -> bool:
        """Whether the trial needs its run.

        Raises:
            UserError: the run has finished with other inputs, such as a text that has changed since.
        """
        try:
            run_id = run.config.run_id
        except UserError as error:  # values that do not go together
            trial.set_user_attr("run_id", f"none-{trial.number}")
            self._tell(trial, run, TrialState.FAIL, note=str(error))
            return False
        for change in changed([run]).values():
            raise UserError(change)
        trial.set_user_attr("run_id", run_id)
        if run_id in self.ended:
            self._tell_as(trial, run, self.ended[run_id])
            return False
        if any(active.folder == run.folder for active in self.active):
            self.twins.append((trial, run))
            return False
        known = self.study.get_trials(deepcopy=False)[trial.number]
        pruned = _PRUNED in known.user_attrs
        self.active[run] = Active(trial, pruned, set(known.intermediate_values))
        if pruned and not run.is_in_use():
            self._collect(run, EXIT_INTERRUPTED)
            return False
        return True

    def _look_at(self, pool: Pool[Run]) -> None:
        """Reports new validations of runs in progress, and stops runs that the pruner says to."""
        for run in pool.active:
            self._report(run)
            if self.active[run].pruned:
                pool.stop(run)
        self.on_poll()

    def _report(self, run: Run) -> None:
        active, finished = self.active[run], run.is_finished()
        with suppress(UserError, OSError):
            for row in read_rows(run.folder):
                value, step = row.get(self.sweep.metric.removeprefix("best/")), int(row["step"])
                if value is None or step in active.reported or active.pruned:
                    continue  # what a pruned run still does until it ends must not affect later trials
                active.trial.report(float(value), step)
                active.reported.add(step)
                if not finished and step < run.config.trainer.steps and active.trial.should_prune():
                    active.pruned = True
                    active.trial.set_user_attr(_PRUNED, step)

    def _collect(self, run: Run, code: int) -> None:
        """Ends the trial of a run that has ended."""
        self._report(run)
        if run.is_finished():
            self._finish(run)
        elif self.active[run].pruned:
            self._end(run, TrialState.PRUNED)
        elif run.error.startswith("TrainingDiverged"):
            self._end(run, TrialState.PRUNED, note=run.error)
        elif code == EXIT_INTERRUPTED:
            del self.active[run]
            self.interrupted += 1
            self.say(f"{run.label}: interrupted from outside; rerun the command to resume it")
        elif code < 0 or code == EXIT_DISK:
            del self.active[run]
            self.stopped.append(f"{run.label} ({run.reason(code)})")
        else:
            self._end(run, TrialState.FAIL, note=run.reason(code))

    def _finish(self, run: Run) -> None:
        summary = read_summary(run.folder)
        value = summary.get(self.sweep.metric)
        if not isinstance(value, int | float):
            known = ", ".join(name for name, found in summary.items() if isinstance(found, int | float))
            raise UserError(f"metric={self.sweep.metric}: not in summary.json; valid: {known}")
        if math.isnan(value):
            self._end(run, TrialState.FAIL, note=f"{self.sweep.metric} is not a number  ({run.folder})")
        else:
            self._end(run, TrialState.COMPLETE, float(value))

    def _end(self, run: Run, state: TrialState, value: float | None = None, note: str = "") -> None:
        frozen = self._tell(self.active.pop(run).trial, run, state, value, note)
        for twin in [twin for twin in self.twins if twin[1].folder == run.folder]:
            self.twins.remove(twin)
            self._tell_as(*twin, frozen)

    def _tell_as(self, trial: optuna.Trial, run: Run, other: FrozenTrial) -> None:
        value = other.value if other.state == TrialState.COMPLETE else None
        self._tell(trial, run, other.state, value, f"the same run as trial {other.number}")

    def _tell(
        self, trial: optuna.Trial, run: Run, state: TrialState, value: float | None = None, note: str = ""
    ) -> FrozenTrial:
        if note:
            trial.set_user_attr("note", redact(note))
        frozen = self.study.tell(trial, value, state=state)
        self.ended.setdefault(frozen.user_attrs["run_id"], frozen)
        word = f"{self.sweep.metric} {value}" if state == TrialState.COMPLETE else STATES[state]
        values = " ".join(as_overrides(frozen.params))
        self.say(f"{run.label}: {word}  {values}{f'  ({note})' if note and state != TrialState.FAIL else ''}")
        if state == TrialState.FAIL:
            self.say(f"  {note}")
        return frozen
