"""The checkpoint that an interrupted run resumes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssa.config import Config
from ssa.errors import UserError
from ssa.record import sharded_checkpoint
from ssa.record.checkpoint import check_config, read, save


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint to resume from.

    Attributes:
        path: the file.
        step: its optimizer step.
        damaged: what is wrong with the newest, or with the best weights, in one line; empty: nothing.
        has_best: whether the best weights, which are damaged, are those of this checkpoint.
        rows: rows in metrics.jsonl when it was saved; None: not known, in a checkpoint of version 0.2.
        has_base: whether it holds all tensors, not those of the temperatures alone.
    """

    path: Path
    step: int
    damaged: str
    has_best: bool
    rows: int | None
    has_base: bool


def resume_point(checkpoints: Sequence[Path], best: Path, config: Config) -> ResumePoint | None:
    """The newest checkpoint that training can resume from; None: there is none yet.

    A damaged one is passed over, and where ``best`` is damaged, those of other weights.

    Args:
        checkpoints: newest first; those that do not exist are passed over.
        best: the best weights.
        config: of the run.

    Raises:
        UserError: there are checkpoints, but none of them will do.
    """
    problems: dict[str, None] = {}
    for path in filter(Path.exists, checkpoints):
        try:
            contents = sharded_checkpoint.read_rest(path) if path.is_dir() else read(path)
            step, saved = int(contents["global_step"]), contents["callbacks"]["Checkpoints"]
            check_config(contents, config, path)
        except KeyError:
            problems[f"{path}: not a checkpoint to resume from"] = None
            continue
        except UserError as error:
            problems[str(error)] = None
            continue
        has_best = False
        if math.isfinite(saved["best_loss"]):
            try:
                read(best)
            except UserError as error:
                problems[str(error)] = None
                has_best = saved["best_step"] == step
                if not has_best:
                    continue
        return ResumePoint(path, step, "; ".join(problems), has_best, contents.get("rows"), "base" not in contents)
    if problems:
        raise UserError("; ".join((*problems, "rerun=true starts over")))
    return None


def restore_best(point: ResumePoint, best: Path) -> None:
    """Write ``best`` again, from a checkpoint that has its weights."""
    contents = sharded_checkpoint.read(point.path) if point.path.is_dir() else read(point.path)
    weights = {name.removeprefix("model."): tensor for name, tensor in contents["state_dict"].items()}
    base = {key: contents[key] for key in ("base",) if key in contents}
    save({"model": weights, **base, "config": contents["config"], "step": point.step}, best)
