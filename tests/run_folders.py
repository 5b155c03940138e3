"""Run folders as training leaves them, in milliseconds each: real configs and formats, made-up numbers.

``python tests/run_folders.py FOLDER [N]`` makes them by hand.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import count, product
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import ssa.command_line.cli  # noqa: F401  # the resolvers that the YAML files use
from ssa.config import Config, parse
from ssa.record.checksums import with_checksums
from ssa.record.run_files import Row, Status, to_line

CONF = ROOT / "conf"
COMMIT, DATA_HASH = "c0ffee" + 34 * "0", "da7a" + 60 * "0"
ROWS = 50  # of metrics.jsonl, every tenth of them a validation
TEMPERATURES = ("none", "ssa", "token", "position", "constant", "yarn", "ssmax", "gate")
RATES = (1e-3, 2e-3, 4e-3)
PLACES = (("outputs", "main"), ("outputs", "ablation"), ("outputs/experiments", "main"))  # output_dir, experiment
FAILED, INTERRUPTED, KILLED = 7, 17, 27  # of each 50 runs, the places of those that did not finish
EVALUATED = 4  # one of so many runs is evaluated, if it finished
_BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_ENVIRONMENT = {
    "command": ["train.py", "scale=smoke"],
    "host": "somewhere",
    "git": {"commit": COMMIT, "dirty": False, "untracked": []},
    "python": "3.11.7",
    "machine": {"os": "Linux", "cpu": "a CPU", "cores": 2, "threads": 2, "memory_bytes": 2**33},
    "device": "cpu",
    "precision": "32-true",
    "cpu_capability": "AVX2",
    "threads": 1,
    "torch": "2.13.0+cpu",
    "attention_backend": "flash",
    "packages": {f"package-{number}": f"{number}.0.1" for number in range(140)},
    "data_hash": DATA_HASH,
    "inputs": {},
}


def make(folder: Path, n: int) -> list[Path]:
    """Makes ``n`` run folders below ``folder``, always the same; returns them in order.

    Of each 50 one has failed, one was interrupted, and one says ``running`` with no process at it; the others have
    finished, and about a quarter of those has an evaluation.
    """
    made = []
    for number, config in zip(range(n), configs(), strict=False):
        path = folder / Path(config.output_dir).relative_to("outputs") / config.experiment / config.run_id
        write(path, config, random.Random(number), number)
        made.append(path)
    return made


def configs() -> Iterator[Config]:
    """Seed after seed, all temperatures at all learning rates; every third seed goes to the same place."""
    composed = [_composed(temperature) for temperature in TEMPERATURES]
    for seed in count():
        for config, lr in product(composed, RATES):
            (output_dir, experiment), optim = PLACES[seed % 3], config.optim.model_copy(update={"lr": lr})
            where = {"output_dir": output_dir, "experiment": experiment}
            yield config.model_copy(update={"optim": optim, "seed": seed, **where})


def write(path: Path, config: Config, numbers: random.Random, number: int = 0, **summary: Any) -> None:
    """The folder of one run; ``number`` decides how it ended, ``summary`` has values of its own."""
    state = {FAILED: "failed", INTERRUPTED: "interrupted", KILLED: "running"}.get(number % 50, "finished")
    finished = state == "finished"
    steps = config.trainer.steps if finished else config.trainer.steps // 2
    begun = _BEGAN + timedelta(minutes=number)
    rows = list(_rows(config, numbers, ROWS if finished else ROWS // 2, steps))
    error = "TrainingDiverged: the loss is not finite at step 10" if state == "failed" else None
    status = Status(state, 1, _time(begun), _time(begun + timedelta(seconds=50)), steps, 2**22 + 1, "somewhere", error)
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.dump(config.plain(), Dumper=_DUMPER, sort_keys=False))
    _write_json(path / "environment.json", {"time": _time(begun), **_ENVIRONMENT})
    (path / "metrics.jsonl").write_text("".join(map(to_line, rows)))
    _write_json(path / "status.json", asdict(status))
    if finished:
        if number % EVALUATED == 0:
            (path / "evaluation").mkdir()
            _write_json(path / "evaluation" / "perplexity.json", _evaluation(rows[-1]["val/loss"] + 0.01))
        _write_json(path / "summary.json", with_checksums(path, {**_summary(config, rows), **summary}, {}))


def _composed(temperature: str) -> Config:
    overrides = ["scale=smoke", "model=gpt2", f"model/temperature={temperature}", "logger=none", "output_dir=outputs"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return parse(OmegaConf.to_container(compose("config", overrides), resolve=True))  # type: ignore[arg-type]


def _rows(config: Config, numbers: random.Random, n: int, steps: int) -> Iterator[Row]:
    a_step = config.trainer.batch_size * config.data.block_size
    for row in range(1, n + 1):
        step = max(1, steps * row // n)
        loss = 4 + 3 * math.exp(-3 * row / ROWS) + numbers.gauss(0, 0.05)
        if row % 10 == 0:
            yield {"step": step, "tokens": step * a_step, **_measured(config, numbers, "val", loss + 0.1)}
        else:
            rate, speed = config.optim.lr * (1 - row / n), 15000 * numbers.uniform(0.9, 1.1)
            trained = {"train/loss": loss, "train/grad_norm": numbers.uniform(0.5, 2), "train/lr": rate}
            yield {"step": step, "tokens": step * a_step, **trained, "train/tokens_per_second": speed}


def _measured(config: Config, numbers: random.Random, split: str, loss: float) -> Row:
    """A split's loss, and for the validation its attention."""
    losses = {"loss": loss, "perplexity": math.exp(loss), "word_perplexity": math.exp(2 * loss)}
    found = {**losses, "bits_per_byte": loss / 2}
    if split == "val":
        found |= {f"attention_{what}": numbers.uniform(*span) for what, span in _ATTENTION.items()}
        layers, heads = range(config.model.n_layer), range(config.model.n_head)
        for what, layer in product(_ATTENTION, layers):
            found[f"attention_{what}/layer_{layer:02}"] = numbers.uniform(*_ATTENTION[what])
            for head in heads:
                found[f"attention_{what}/layer_{layer:02}/head_{head:02}"] = numbers.uniform(*_ATTENTION[what])
        for kind, layer in product(_scaled(config), layers):
            mean = numbers.gauss(1.05, 0.05)
            values = {"mean": mean, "std": 0.03, "min": mean - 0.1, "max": mean + 0.1}
            values |= {f"head_{head:02}": mean + 0.01 * head for head in heads}
            found |= {f"temperature/{kind}/layer_{layer:02}/{name}": value for name, value in values.items()}
    return {f"{split}/{name}": value for name, value in found.items()}


_ATTENTION = {"entropy": (2.8, 3.2), "entropy_normalized": (0.8, 1.0), "spikiness": (0.5, 1.0)}


def _scaled(config: Config) -> list[str]:
    return [kind for kind in ("query", "key", "value") if getattr(config.model.temperature, kind) is not None]


def _summary(config: Config, rows: list[Row]) -> dict[str, Any]:
    """As `ssa.training.summary` puts it together."""
    last, test = rows[-1], rows[-1]["val/loss"] + 0.02
    units = {"documents": 20, "tokens": 16384, "words": 6500, "bytes": 46000}
    return {
        "run_id": config.run_id,
        "status": "finished",
        "experiment": config.experiment,
        "scale": config.scale,
        "model": config.model.name,
        "size": config.model.size,
        "temperature": config.model.temperature.name,
        "init_from": config.init_from,
        "train": config.optim.train,
        "data": config.data.name,
        "data_hash": DATA_HASH,
        "commit": COMMIT,
        "seed": config.seed,
        **{f"parameters.{name}": value for name, value in zip(("total", "temperature"), (1420670, 990), strict=True)},
        "steps": config.trainer.steps,
        "block_size": config.data.block_size,
        "document_mask": config.data.document_mask,
        "tokens": last["tokens"],
        "best_step": last["step"],
        **{f"best/{name}": value for name, value in last.items() if name.startswith("val/")},
        **_measured(config, random.Random(0), "best/test", test),
        "reference/val/unigram_perplexity": 496.8,
        "reference/val/bigram_perplexity": 79.8,
        "device": "cpu",
        "precision": "32-true",
        "cpu": "a CPU",
        "cpu_capability": "AVX2",
        "threads": 1,
        "torch": "2.13.0+cpu",
        "attention_backend": "flash",
        "peak_memory_bytes": 650592256,
        **{f"data.{split}.{unit}": n for split, (unit, n) in product(("train", "validation", "test"), units.items())},
        "tokens_per_second": rows[0]["train/tokens_per_second"],
        "train_seconds": 1.7,
        "wall_seconds": 12.9,
    }


def _evaluation(loss: float) -> dict[str, Any]:
    """As `ssa.evaluation.results` keeps it."""
    metrics = {"loss": loss, "perplexity": math.exp(loss), "word_perplexity": math.exp(2 * loss)}
    return {
        "task": "perplexity",
        "of": "a run",
        "metrics": {name: {"value": value, "higher_is_better": False} for name, value in metrics.items()},
        "n": 256,
        "counts": {"tokens": 16384},
        "settings": {"text": "own"},
        "model": {"weights_hash": 64 * "0"},
        "versions": {"ssa": "0.1.0"},
        "seconds": 1.0,
        "time": _time(_BEGAN),
        "details": {},
        "others": [],
    }


def _time(when: datetime) -> str:
    return when.isoformat(timespec="seconds")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")  # not write_json: it waits for the disk


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20)
