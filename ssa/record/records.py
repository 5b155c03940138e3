"""Records: runs that have ended, without their weights, a row each in one Parquet file, small enough for a repository.

A record gives the same `FoundRun` as its run folder, and the curve of metrics.jsonl.  It leaves out what is large or
tells of the machine's owner: weights, host and process, per-head curves, answers of evaluations.  Every row has a
SHA-256 of its values, and the file one of all rows.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ssa.errors import UserError, first_line
from ssa.files import hash_of, parse_json, refuse_lfs_pointer, replacing, to_json
from ssa.record.machine import Machine
from ssa.record.run_files import Row, load_config, read_environment, read_evaluation, read_rows
from ssa.record.run_table import FoundRun
from ssa.record.runs import metrics_of, read_run

_VERSION = "1"
_METRICS = pa.map_(pa.string(), pa.float64())
_SCHEMA = pa.schema(
    {
        "run_id": pa.string(),
        "time": pa.string(),
        "error": pa.string(),
        "weights": pa.string(),
        "overrides": pa.list_(pa.string()),
        "evaluate": pa.list_(pa.string()),
        "config": pa.string(),  # JSON, as are the others without a type of their own
        "environment": pa.string(),
        "facts": pa.string(),  # of the summary: what is not in `numbers`
        "numbers": _METRICS,
        "evaluations": pa.string(),
        "curve": pa.list_(pa.struct({"step": pa.int64(), "tokens": pa.int64(), "metrics": _METRICS})),
        "sha256": pa.string(),
    }
)
_NUMBERS = ("numbers.key_value.value", "curve.list.element.metrics.key_value.value")
_NAMES = ("numbers.key_value.key", "curve.list.element.metrics.key_value.key")
_OF_THE_CURVE = {"train/lr", "train/tokens_per_second", "train/peak_memory_bytes"}  # of its rows: left out
_OF_A_RESULT = {"others", "details", "of"}


@dataclass(frozen=True)
class Record:
    """A run that has finished or failed.

    Attributes:
        run: as from its run folder; ``run.folder`` is the file of the record.
        overrides: of train.py.
        evaluate: arguments of evaluate.py; empty: not evaluated.
        environment: the contents of environment.json, without the host.
        evaluations: the newest outcome of each task, with its settings.
        curve: rows of metrics.jsonl, without per-head statistics.
        weights: SHA-256 of the best weights, see `BestWeights.sha256`; empty: they had been removed.
    """

    run: FoundRun
    overrides: tuple[str, ...]
    evaluate: tuple[str, ...]
    environment: Mapping[str, Any]
    evaluations: Sequence[Mapping[str, Any]]
    curve: Sequence[Row]
    weights: str

    @property
    def machine(self) -> Machine | None:
        """What it was trained on; None where that is not recorded."""
        return Machine.of({**self.environment, "cpu": (self.environment.get("machine") or {}).get("cpu")})


def record_of(
    folder: Path,
    overrides: Sequence[str],
    evaluate: Sequence[str] = (),
    tasks: Collection[str] = (),
    known: Record | None = None,
) -> Record:
    """The record of a run folder, finished or failed.

    Args:
        overrides: of train.py.
        evaluate: arguments of evaluate.py.
        tasks: those whose outcomes are kept.
        known: returned if it is of this run and nothing has changed.

    Raises:
        UserError: the run has not ended, or is damaged.
    """
    run = read_run(folder)
    if run.status not in ("finished", "failed") or run.damage:
        raise UserError(f"{folder}: {'; '.join(run.damage) or run.status}: no record of it")
    made = tuple(overrides), tuple(evaluate)
    outcomes = [_outcome(path) for path in sorted((folder / "evaluation").glob("*.json"))]
    outcomes = [outcome for outcome in outcomes if outcome["task"] in tasks]
    outputs = str(run.config["output_dir"])
    run = replace(
        run,
        config=_relative(run.config, outputs),
        summary=_relative(run.summary, outputs),
        evaluations=_metrics(outcomes),
    )
    unchanged = known is not None and replace(known.run, folder=run.folder) == run
    if known is not None and unchanged and (known.overrides, known.evaluate) == made:
        return known
    return Record(
        run=run,
        overrides=made[0],
        evaluate=made[1],
        environment=_relative(_public(read_environment(folder)), outputs),
        evaluations=outcomes,
        curve=[_point(row) for row in read_rows(folder)],
        weights=_weights(folder),
    )


def write(path: Path, records: Sequence[Record], before: Path | None = None) -> None:
    """Write records atomically, sorted by run id.

    Equal records give equal bytes; with another version of pyarrow, those of the file ``before``.

    Raises:
        UserError: ``before`` is damaged.
    """
    if before is not None and sorted(map(_hash, read(before))) == sorted(map(_hash, records)):
        with replacing(path) as partial:
            shutil.copyfile(before, partial)
        return
    rows = sorted(map(_row, records), key=lambda row: str(row["run_id"]))
    metadata = {"version": _VERSION, "sha256": hash_of([row["sha256"] for row in rows])}
    stored = [{**row, "numbers": _items(row["numbers"]), "curve": [*map(_stored, row["curve"])]} for row in rows]
    table = pa.Table.from_pylist(stored, schema=_SCHEMA.with_metadata(metadata))
    with replacing(path) as partial:
        pq.write_table(
            table,
            partial,
            compression="zstd",
            compression_level=9,
            use_dictionary=list(_NAMES),
            column_encoding=dict.fromkeys(_NUMBERS, "BYTE_STREAM_SPLIT"),
            write_page_checksum=True,
            write_statistics=False,
        )


def read(path: Path) -> list[Record]:
    """The records of a file; none where there is no file.

    Raises:
        UserError: the file is damaged; names the run where the damage is within one.
    """
    if not path.exists():
        return []
    refuse_lfs_pointer(path, str(path))
    restore = f"restore it (git checkout {shlex.quote(str(path))}), or remove it to train its runs again"
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        if not table.schema.equals(_SCHEMA):
            raise ValueError("its columns are others")
        if table.schema.metadata.get(b"version") != _VERSION.encode():
            raise UserError(f"{path}: records of another version; {restore}")
        rows = [
            {**row, "numbers": dict(row["numbers"]), "curve": [*map(_loaded, row["curve"])]}
            for row in table.to_pylist()
        ]
        listed = table.schema.metadata.get(b"sha256")
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged, or not a file of records ({first_line(error)}): {restore}") from None
    for row in rows:
        if row.get("sha256") != _sha256(row):
            raise UserError(f"{path}: the record of {row.get('run_id')} is damaged, or was changed: {restore}")
    if listed != hash_of([row["sha256"] for row in rows]).encode():
        raise UserError(f"{path}: records were removed or added: {restore}")
    return [_record(row, path) for row in rows]


def _record(row: Mapping[str, Any], path: Path) -> Record:
    where = f"{path}: the record of {row['run_id']}"
    config, environment, facts = (parse_json(row[name], where) for name in ("config", "environment", "facts"))
    evaluations = parse_json(row["evaluations"], where)["evaluations"]
    summary = {**facts, **row["numbers"]}
    run = FoundRun(
        run_id=row["run_id"],
        folder=str(path),
        status="failed" if row["error"] else "finished",
        error=row["error"],
        config=config,
        summary=summary,
        evaluations=_metrics(evaluations),
        experiment=str(config["experiment"]),
        commit=summary.get("commit") or environment["git"].get("commit") or "",
        data_hash=summary.get("data_hash") or environment.get("data_hash") or "",
        time=row["time"],
    )
    curve = [{"step": point["step"], "tokens": point["tokens"], **point["metrics"]} for point in row["curve"]]
    return Record(run, tuple(row["overrides"]), tuple(row["evaluate"]), environment, evaluations, curve, row["weights"])


def _row(record: Record) -> dict[str, Any]:
    run = record.run
    row = {
        "run_id": run.run_id,
        "time": run.time,
        "error": run.error,
        "weights": record.weights,
        "overrides": list(record.overrides),
        "evaluate": list(record.evaluate),
        "config": to_json(run.config, None),
        "environment": to_json(record.environment, None),
        "facts": to_json({name: value for name, value in run.summary.items() if not isinstance(value, float)}, None),
        "numbers": {name: value for name, value in run.summary.items() if isinstance(value, float)},
        "evaluations": to_json({"evaluations": list(record.evaluations)}, None),
        "curve": [
            {"step": point["step"], "tokens": point["tokens"], "metrics": dict(list(point.items())[2:])}
            for point in record.curve
        ],
    }
    return {**row, "sha256": _sha256(row)}


def _hash(record: Record) -> str:
    return str(_row(record)["sha256"])


def _sha256(row: Mapping[str, Any]) -> str:
    return hash_of({name: value for name, value in row.items() if name != "sha256"})


def _stored(point: Mapping[str, Any]) -> dict[str, Any]:
    return {**point, "metrics": _items(point["metrics"])}


def _loaded(point: Mapping[str, Any]) -> dict[str, Any]:
    return {**point, "metrics": dict(point["metrics"])}


def _items(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    return list(metrics.items())


def _point(row: Row) -> Row:
    """A row of the curve: numbers other than the speed, the schedule and per-head statistics."""
    metrics = {
        name: float(value)
        for name, value in row.items()
        if "/" in name and "/head_" not in name and name not in _OF_THE_CURVE and isinstance(value, int | float)
    }
    return {"step": row["step"], "tokens": row["tokens"], **metrics}


def _public(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Without the host and the names of files that are not in the repository."""
    git = {name: fact for name, fact in (environment.get("git") or {}).items() if name != "untracked"}
    return {**{name: fact for name, fact in environment.items() if name != "host"}, "git": git}


def _outcome(path: Path) -> dict[str, Any]:
    return {name: value for name, value in read_evaluation(path).items() if name not in _OF_A_RESULT}


def _metrics(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for evaluation in evaluations for name, value in metrics_of(evaluation).items()}


def _weights(folder: Path) -> str:
    from ssa.record.checkpoint import read_best  # imports torch
    from ssa.record.run_model import best_weights

    with suppress(UserError):
        return read_best(best_weights(folder), load_config(folder)).sha256()
    return ""


def _relative(value: Any, outputs: str) -> Any:
    """Nested values without paths of this machine: those below the working folder are relative to it, and the folder of
    runs, ``outputs``, is in one named outputs, wherever it was.
    """
    if isinstance(value, Mapping):
        return {_relative(key, outputs): _relative(item, outputs) for key, item in value.items()}
    if isinstance(value, list):
        return [_relative(item, outputs) for item in value]
    if not isinstance(value, str):
        return value
    if Path(outputs).is_absolute() and not Path(outputs).is_relative_to(Path.cwd()):
        value = value.replace(outputs, f"outputs/{Path(outputs).name}")
    return value.replace(f"{Path.cwd()}/", "")
