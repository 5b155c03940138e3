"""Training runs shared by several experiments, and measurements on them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.engine.experiment import TrainingSettings
from ssa.errors import UserError
from ssa.launch.run import Run
from ssa.record.run_files import load_config
from ssa.record.run_model import hash_of_weights


def run_of(
    settings: TrainingSettings,
    rule: str,
    seed: int,
    train: Sequence[str] | None = None,
    group: str = "",
    more: str = "",
) -> Run:
    """A run with a temperature rule and a seed.

    Args:
        train: overrides in place of ``settings.train``.
        more: what distinguishes its setting from others with the same rule.
    """
    where = (f"output_dir={settings.output_dir}/experiments", f"logger={settings.logger}")
    overrides = (*(train or settings.train), f"model/temperature={rule}", f"seed={seed}", *where)
    return Run(overrides, group, f"{rule}, {more}" if more else rule, seed)


def weights_of(run: Path) -> str:
    """A hash of a run's best weights, which identifies the state of its folder."""
    return hash_of_weights(run)[:10]


def exported_start(run: Path, output_dir: str, write: bool = True) -> list[str]:
    """Overrides that fine-tune a run's best weights.

    Args:
        run: the run folder.
        output_dir: the folder for its export, whose name ends in a hash of its tensors.
        write: false: write nothing, only return where it is.

    Raises:
        UserError: the run has no weights; or ``write`` is false and its export does not exist.
    """
    from ssa.export.folder import export
    from ssa.record.checkpoint import read_best
    from ssa.record.run_model import best_weights

    digest = read_best(best_weights(run), load_config(run)).sha256()  # of the tensors: the same if trained again
    model = Path(output_dir) / "experiments" / "pretrained" / f"{run.name}-{digest[:10]}"
    if not (model / "config.json").is_file():
        if not write:
            raise UserError(f"{model}: does not exist yet")
        export(run, model)
    return [f"init_from={model}"]


def attention_of(run: str, weights: str) -> dict[str, Any]:
    """The attention report of a run, as ``python evaluate.py run=RUN tasks=attention`` computes it.

    Args:
        run: the run folder.
        weights: `weights_of` the run, so that other weights are another cached job.

    Returns:
        ``metrics`` by name, see `ssa.evaluation.attention.report`; ``positions``: for each number n of visible keys,
        the mean over layers, heads and sequences of ``entropy`` (nats), ``entropy_normalized`` and ``spikiness``;
        ``heads``: one row per layer and head, with ``norm`` and ``tau_norm``; ``norms``: percentiles of ``tau_norm``
        over tokens.
    """
    import pyarrow.parquet as pq

    from ssa.evaluation.attention.report import Attention
    from ssa.evaluation.evaluate import evaluate
    from ssa.evaluation.settings import EvaluateSettings

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            metrics = evaluate(EvaluateSettings(run=run, tasks=[Attention.name]))[Attention.name]["metrics"]
    except UserError as error:
        said = [line for line in printed.getvalue().splitlines() if line.startswith("error: ")]
        raise UserError(f"{run}: {' '.join(said).removeprefix('error: ') or error}") from None
    folder = Path(run) / "evaluation" / "attention"
    tables = {name: pq.read_table(folder / f"{name}.parquet") for name in ("positions", "heads", "norms")}
    names = ("entropy", "entropy_normalized", "spikiness")
    means = tables["positions"].group_by("n").aggregate([(name, "mean") for name in names]).sort_by("n").to_pylist()
    return {
        "metrics": {name: metric["value"] for name, metric in metrics.items()},
        "positions": [{"n": row["n"], **{name: row[f"{name}_mean"] for name in names}} for row in means],
        "heads": tables["heads"].to_pylist(),
        "norms": tables["norms"].to_pylist(),
    }
