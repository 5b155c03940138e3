"""An experiment that is a grid of tiny runs, in its own folder, for tests of grids."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.engine import experiment as experiment_module
from ssa.config import SCALES

ROWS = {"vanilla": "none", "constant": "constant", "SSA": "ssa"}
GRID: dict[str, Any] = {
    "groups": [{"name": "GPT-2", "overrides": ["model=gpt2"]}],
    "rows": [{"name": name, "overrides": [f"model/temperature={rule}"]} for name, rule in ROWS.items()],
    "metrics": [
        {"name": "loss", "key": "best/val/loss", "digits": 4, "compared": True, "smallest": 0.005},
        {"name": "accuracy", "key": "eval/passkey/accuracy", "task": "passkey"},
        {"name": "parameters", "key": "parameters.total", "digits": 0},
    ],
    "claims": [{"group": "GPT-2", "row": "SSA", "against": "vanilla", "metric": "loss"}],
    "notes": "Loss in nats per token.",
}
TINY = ("scale=smoke", "trainer.steps=4", "optim.warmup_steps=1", "trainer.eval_every=2", "data.max_eval_tokens=1024")
# The command line of `python -m experiments`, whose experiments are in the folder that is its first argument
PROGRAM = """
import sys
from pathlib import Path
from experiments.engine import experiment
from experiments.__main__ import main
if __name__ == "__main__":
    experiment.EXPERIMENTS = experiment.SHARED = Path(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
"""


def grid(**changes: Any) -> dict[str, Any]:
    """The declaration of a grid, with changes."""
    return {**copy.deepcopy(GRID), **changes}


def make_experiment(folder: Path, text: Path, more: Sequence[str] = (), name: str = "tiny", **changes: Any) -> Path:
    """An experiment in ``folder``, whose runs are trained on ``text``, with ``more`` overrides."""
    train = [*TINY, "data=text", f"data.train={text}", "data.tokenizer=bpe-512", *more]
    (folder / name).mkdir(parents=True)
    (folder / "grids.yaml").write_text(yaml.safe_dump(dict.fromkeys(SCALES, train)))
    scales = {scale: {"seeds": 2} for scale in SCALES}
    config = {"purpose": "a grid of tiny runs", "grid": grid(**changes), "scales": scales}
    (folder / name / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    reference = (
        'quantity,method,value,grade,note\nGPT-2: loss,SSA,3.1,C,"one source"\nGPT-2: loss,vanilla,-,B,"no cell"\n'
        "GPT-2: loss,constant,3.3,C,\nGPT-2: loss,zero,0,C,\n"
    )
    (folder / name / "reference.csv").write_text(reference)
    return folder / name


def use(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Replaces the experiments of this package by those in a folder."""
    patch.setattr(experiment_module, "EXPERIMENTS", folder)
    patch.setattr(experiment_module, "SHARED", folder)
