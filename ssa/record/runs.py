"""The run store: all runs below a folder, or of a W&B project, in one table.  ``docs/runs.md`` describes its columns.

    runs = load()                                            # all of outputs/
    done = runs[(runs.status == "finished") & (runs.damage == "")]
    done.groupby(["variant"])["best/test/perplexity"].mean()

Needs no torch, and W&B only for ``source=``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from ssa.config import upgraded
from ssa.errors import UserError
from ssa.record import wandb_runs
from ssa.record.checksums import KEYS, damage
from ssa.record.run_files import read_environment, read_evaluation, read_rows, read_summary
from ssa.record.run_record import read_status
from ssa.record.run_table import SECTIONS, FoundRun, table
from ssa.yaml_files import read_yaml

_OF_A_RUN = {"config.yaml", "status.json", "summary.json"}  # a folder with two of them is a run: the third may be lost


def load(
    folder: str | Path = "outputs",
    source: str | None = None,
    checked: bool = True,
    recorded: Sequence[FoundRun] = (),
) -> pd.DataFrame:
    """One row per run, indexed by run id.

    A damaged file is named in ``damage``, and its columns are empty; other runs are not affected.

    Args:
        folder: contains run folders, at any depth.
        source: ``wandb:ENTITY/PROJECT``: read the runs of a W&B project instead.
        checked: verify checksums; otherwise ``damage`` names unreadable files only.
        recorded: runs from `ssa.record.records`, in place of run folders with their ids.

    Raises:
        UserError: the folder or the W&B project does not exist, or W&B does not answer.
    """
    if source is not None:
        return table(wandb_runs.read(source))
    if not Path(folder).is_dir() and not recorded:
        raise UserError(f"folder={folder}: no such folder; valid: a folder with run folders, such as outputs")
    known = {run.run_id for run in recorded}
    found = (_read(path, names, checked) for path, names in run_folders(Path(folder)))
    return table([*recorded, *(run for run in found if run.run_id not in known)])


def read_run(folder: str | Path) -> FoundRun:
    """One run folder, with its checksums verified; damage is named as in `load`."""
    return _read(Path(folder), {path.name for path in Path(folder).iterdir()}, checked=True)


def curves(folder: str | Path) -> pd.DataFrame:
    """The rows of metrics.jsonl: ``step``, ``tokens`` and one column per metric, NaN where not measured.

    Raises:
        UserError: the folder is not a run folder, or its metrics.jsonl is damaged.
    """
    return pd.DataFrame(read_rows(folder))


def run_folders(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """The run folders below a folder, each with the names of its entries; those set aside by ``rerun`` are skipped.

    Links are followed; each folder is visited once.
    """
    seen = set()
    for path, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(path)) in seen:
            folders.clear()
            continue
        seen.add(real)
        names = {*files, *folders}
        if len(_OF_A_RUN & names) > 1:
            yield Path(path), names
            folders.clear()
        kept = (name for name in folders if not name.startswith(".") and ".replaced-" not in name)
        folders[:] = sorted(kept, key=lambda name: (os.path.islink(os.path.join(path, name)), name))


def _read(folder: Path, names: set[str], checked: bool) -> FoundRun:
    lost: dict[str, str] = {}  # problems of unreadable files, by name

    def known(name: str, read: Callable[[Path], Any]) -> Any:
        """The contents of a file; {} if it cannot be read."""
        try:
            return read(folder / name)
        except (UserError, OSError):
            lost[name] = "damaged" if (folder / name).exists() else "removed"
            return {}

    config = known("config.yaml", _config)
    status = known("status.json", lambda path: asdict(read_status(path.parent)))
    expected = "summary.json" in names or status.get("status") == "finished"
    summary = known("summary.json", lambda path: read_summary(path.parent)) if expected else {}
    finished = (status or summary).get("status") == "finished"
    environment = {} if {"commit", "data_hash"} <= summary.keys() else known("environment.json", _environment)
    evaluations: dict[str, Any] = {}
    if "evaluation" in names:
        for path in sorted((folder / "evaluation").glob("*.json")):
            evaluations |= metrics_of(known(f"evaluation/{path.name}", read_evaluation))
    found = damage(folder) if checked else []
    found += [f"{name} {what}" for name, what in lost.items() if not any(line.startswith(f"{name} ") for line in found)]
    return FoundRun(
        run_id=str(summary.get("run_id", folder.name)),
        folder=str(folder),
        status="finished" if finished else status.get("status", "failed"),
        config=config,
        summary={name: value for name, value in summary.items() if name not in KEYS} if finished else {},
        evaluations=evaluations,
        experiment=str(config.get("experiment", folder.parent.name)),
        error=(status.get("error") or "") if status else f"status.json {lost['status.json']}",
        damage=tuple(found),
        commit=summary.get("commit") or _commit(environment),
        data_hash=summary.get("data_hash") or environment.get("data_hash") or "",
        time=str(status.get("time", "")),
    )


def _commit(environment: dict[str, Any]) -> str:
    return (environment.get("git") or {}).get("commit") or ""


def _environment(path: Path) -> dict[str, Any]:
    return read_environment(path.parent)


def _config(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = upgraded(read_yaml(path))
    if not set(values) >= SECTIONS:
        raise UserError(f"{path} is damaged: sections of the config are missing")
    return values


def metrics_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of the newest outcome of a task, by column; of {} none."""
    metrics = evaluation.get("metrics", {}).items()
    return {f"eval/{evaluation['task']}/{name}": metric["value"] for name, metric in metrics}
