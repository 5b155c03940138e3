"""Context of a running experiment: cached jobs, training runs, results and conclusions.

Results are ``<scale>_<name>.csv``, ``.png``, ``.svg``, ``.pdf`` and so on.  They replace the earlier results of the
same scale all at once, when the experiment finishes.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from experiments.engine.conclusion import Conclusion
from experiments.engine.experiment import BOOKKEEPING, Experiment, ExperimentSettings
from experiments.engine.job_cache import CachedJob, JobCache
from ssa.errors import UserError
from ssa.files import hash_of, partial_path, to_csv, to_json, write_atomic, write_json
from ssa.launch.pool import train
from ssa.launch.run import Run
from ssa.record import environment
from ssa.record.machine import Machine
from ssa.record.run_files import read_summary
from ssa.redaction import redact, redacted
from ssa.report import renderings, tables
from ssa.report.console import show
from ssa.viz import plot_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ssa.record.run_table import FoundRun

K = TypeVar("K")
TableRow = Mapping[str, Any]
_PORTABLE = {"to": None, "output_dir": "outputs"}  # in place of the folders of this machine
_NOTHING = ("", "-")
UNKNOWN = "The paper's values are not known."
_NUMBER = re.compile(r"[-+]?\d[\d.,e+-]*%?( (\[.*\]|\+- .*))?")


class ExperimentContext:
    """Computes jobs, trains runs and writes results for an experiment's ``run``.

    Raises:
        UserError: a folder cannot be written.
    """

    def __init__(self, experiment: Experiment, settings: ExperimentSettings, console: Console) -> None:
        self.experiment, self.settings, self.console = experiment, settings, console
        if settings.to:
            self.folder = Path(settings.to)
        elif experiment.has_default_settings(settings):
            self.folder = experiment.results(settings.output_dir)
        else:
            digest = hash_of(settings.model_dump(exclude=BOOKKEEPING))[:8]
            self.folder = Path(settings.output_dir) / "experiments" / experiment.name / digest
        kept = Path(settings.output_dir) / "experiments" / "cached_jobs"
        try:
            self._staging = partial_path(self.folder / settings.scale)
            self.discard()
            self._staging.mkdir(parents=True)
            kept.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            where = f"to={self.folder}, output_dir={settings.output_dir}"
            raise UserError(f"{where}: cannot be written ({error.strerror})") from None
        self._facts = environment.describe(()).facts
        self._commit = _commit(self._facts)
        self._jobs = JobCache(kept, experiment.name, self._commit, settings.jobs, settings.rerun, console)
        self.conclusions: list[Conclusion] = []
        self._runs: set[Path] = set()
        self._recorded: list[FoundRun] = []
        self.failed: dict[Run, str] = {}

    def compute(self, jobs: Mapping[K, CachedJob]) -> dict[K, Any]:
        """The result of each job; see `JobCache.compute`."""
        return dict(zip(jobs, self._jobs.compute(list(jobs.values())), strict=True))

    def train(self, runs: Sequence[Run]) -> list[Path]:
        """Trains runs that are not finished; returns the folders of all.

        Raises:
            UserError: overrides are refused, or a run failed.
        """
        folders = train(runs, jobs=self.settings.jobs, console=self.console, rerun=self.settings.rerun)
        self._runs |= set(folders)
        return folders

    def add_runs(self, runs: Iterable[Run], failed: Mapping[Run, str]) -> None:
        """Records the runs behind the results, and the failed ones with their reasons."""
        self._runs |= {run.folder for run in runs if run not in failed and run.is_finished()}
        self.failed |= failed

    def add_recorded(self, runs: Iterable[FoundRun]) -> None:
        """Records the runs behind the results that were read from `ssa.record.records`."""
        self._recorded += runs

    def table(self, name: str, rows: Iterable[TableRow]) -> None:
        """Writes ``<scale>_<name>.csv``; numbers have 6 significant digits."""
        rows = list(rows)
        self.text(f"{name}.csv", to_csv([rows[0], *(map(_cell, row.values()) for row in rows)]))

    def summary(self, title: str, rows: Iterable[TableRow], notes: str = "") -> None:
        """Shows rows of text or numbers as a table, without ``paper`` if none of its values is known.

        ``notes`` is the caption: units, scale, seeds, kind of interval.
        """
        rows = list(rows)
        names = [name for name in rows[0] if name != "paper" or any(row[name] not in _NOTHING for row in rows)]
        columns = [_cells_of(name, [_cell(row[name]) for row in rows]) for name in names]
        self.show(tables.Table(title, notes, tuple(names), tuple(zip(*columns, strict=True))))

    def show(self, table: tables.Table) -> None:
        """Writes a table as ``<scale>_summary`` in all its forms, and prints it."""
        references = self.experiment.references()
        if references and all(cell["value"] == "-" for cell in references):
            table = replace(table, caption=f"{table.caption} {UNKNOWN}")
        self.text("summary.json", to_json(asdict(table)))
        for ending, text in renderings.by_suffix(table).items():
            self.text(f"summary.{ending}", text)
        show(table, self.console)

    def text(self, name: str, text: str) -> None:
        """Writes ``<scale>_<name>``, where the name includes its suffix, without secrets."""
        write_atomic(self.path(name), redact(text))

    @contextmanager
    def figure(self, name: str, width: float, height: float, caption: str) -> Iterator[Figure]:
        """A figure to draw into, in inches, written as ``<scale>_<name>.png``, ``.svg`` and ``.pdf`` at the end.

        The caption (quantities, units, seeds) goes to ``<scale>_<name>.txt``, with the scale.
        """
        with plot_style.figure(width, height) as drawing:
            yield drawing
            plot_style.save(drawing, self.path(name))
        self.text(f"{name}.txt", f"{caption} scale={self.settings.scale}.\n")

    def conclude(self, *conclusions: Conclusion) -> None:
        """Adds conclusions; the first of all is the main one."""
        self.conclusions += conclusions

    def path(self, name: str) -> Path:
        """Path to write to for the result ``<scale>_<name>``."""
        return self._staging / f"{self.settings.scale}_{name}"

    def finish(self, seconds: float) -> None:
        """Writes conclusions and provenance, with this process's wall time, and moves all results into place."""
        if self.conclusions:
            self.table("conclusions", [conclusion.row(self.settings.scale) for conclusion in self.conclusions])
        summaries = [run.summary for run in self._recorded]
        for folder in self._runs:
            with suppress(UserError):  # a damaged run, which the table names
                summaries.append(read_summary(folder))
        commits = {
            self._commit,
            *self._jobs.commits,
            *(str(summary["commit"]) for summary in summaries if "commit" in summary),
        }
        write_json(
            self.path("provenance.json"),
            {
                "experiment": self.experiment.name,
                "command": redact(self.experiment.command(self.settings.model_copy(update=_PORTABLE))),
                "settings": redacted(self.settings.model_dump(exclude={"to", "output_dir", "rerun"})),
                "seconds": round(seconds),
                "seconds_of_cached_jobs": round(self._jobs.seconds),
                "seconds_of_runs": round(sum(float(summary.get("wall_seconds") or 0) for summary in summaries)),
                "machines_of_runs": sorted({str(machine) for summary in summaries if (machine := Machine.of(summary))}),
                "commits": sorted(commits),
                "python": self._facts["python"],
                "torch": self._facts["packages"]["torch"],
                "cpu": self._facts["machine"]["cpu"],
                "cores": self._facts["machine"]["cores"],
            },
        )
        written = {path.replace(self.folder / path.name) for path in list(self._staging.iterdir())}
        for path in set(self.folder.glob(f"{self.settings.scale}_*")) - written:
            path.unlink(missing_ok=True)  # from an earlier version
        self._staging.rmdir()

    def discard(self) -> None:
        """Drops unfinished results; earlier ones stay."""
        shutil.rmtree(self._staging, ignore_errors=True)
        with suppress(OSError):
            self.folder.rmdir()  # only if empty


def _commit(facts: Mapping[str, Any]) -> str:
    return str((facts["git"] or {}).get("commit"))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def _cells_of(name: str, column: Sequence[str]) -> list[tables.TableCell]:
    """Cells of a column of text; they are values if all of them are numbers, with or without an interval."""
    paper, is_number = name.startswith("paper"), all(_NUMBER.fullmatch(text) for text in column if text not in _NOTHING)
    state: tables.State = "reference" if paper else "value" if is_number else "text"
    return [tables.TableCell(text, "none" if text == "-" else state if text else "text") for text in column]
