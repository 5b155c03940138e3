"""Programs on tiny inputs, each with what it leaves when nothing disturbs it."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import ROOT
from data_configs import data_config
from grid_experiments import GRID, PROGRAM, make_experiment
from harness import Program, left, preloading

# Text of five epochs, of which the run crosses one
MODEL = ["model.n_layer=2", "model.n_head=2", "model.d_model=16", "model.dropout=0.1", "data.block_size=32"]
STEPS = ["trainer.steps=24", "trainer.eval_every=8", "trainer.checkpoint_every=4", "trainer.batch_size=8"]
RUN = ["scale=smoke", "logger=none", *MODEL, *STEPS, "optim.warmup_steps=2", "data.max_eval_tokens=1024"]
TASKS = ["tasks=perplexity,perplexity_lm_eval,length", "lengths=16,32", "stride=4", "batch_size=3"]
TRAINED = {"evaluate", "generate", "export", "report"}  # programs that read a trained run
# Tokenizes in many chunks, in two processes
BUILD = """
import sys
from pathlib import Path
from ssa.command_line.settings import program
from ssa.config import DataConfig, Section
from ssa.text import token_build
from ssa.text.token_cache import prepare
class Settings(Section):
    data: str
def build(settings):
    token_build.CHUNK = 500
    prepare(DataConfig.model_validate_json(Path(settings.data).read_text()))
if __name__ == "__main__":
    sys.exit(program(Settings, build, name="build.py", purpose=""))
"""


class Reference(NamedTuple):
    """An undisturbed program.

    Attributes:
        folder: where it ran.
        left: what it left; see `harness.left`.
        operations: number of its file operations.
        bytes: number of bytes that it wrote.
        seconds: its duration from the first file operation on.
    """

    folder: Path
    left: dict[str, Any]
    operations: int
    bytes: int
    seconds: float


class Bench:
    """Programs by name, started in folders of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.starter = preloading(folder)
        self._commands = _commands(folder)
        self._references: dict[str, Reference] = {}

    def prepare(self, name: str, folder: Path) -> Path:
        """Create the folder of a program, with a trained run where the program reads one."""
        folder.mkdir()
        if name in TRAINED:
            shutil.copytree(self.reference("train").folder / "files", folder / "files")
        return folder

    def start(self, name: str, folder: Path, fault: str = "", **options: str) -> Program:
        program, arguments = self._commands[name]
        if name in TRAINED:
            (run,) = self.reference("train").folder.glob("files/outputs/main/*")
            arguments = [argument.replace("{run}", run.name) for argument in arguments]
        return Program(self.starter, program, arguments, folder, fault, **options)

    def reference(self, name: str) -> Reference:
        if name not in self._references:
            folder = self.prepare(name, self.folder / name)
            with self.start(name, folder) as program:
                program.wait(operations=1)
                began = time.monotonic()
                assert program.ended() == 0, program.printed
                seconds = time.monotonic() - began
            self._references[name] = Reference(folder, left(folder), program.operations, program.bytes, seconds)
        return self._references[name]


def open_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A fixture."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("faults are injected on Linux, with a C compiler")
    found = Bench(tmp_path_factory.mktemp("bench"))
    yield found
    found.starter.close()


def _commands(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Path or ``-m`` name of each program, and its arguments; ``{run}`` is a run id."""
    from pydoc_data.topics import topics

    text = folder / "text.txt"
    text.write_text("\n\n".join(topics.values())[:10_000])
    train = [*RUN, "data=text", f"data.train={text}", "data.tokenizer=bpe-300"]
    short = ["trainer.steps=12", "trainer.eval_every=4"]
    metrics = [*GRID["metrics"], {"name": "perplexity", "key": "eval/perplexity/perplexity", "task": "perplexity"}]
    make_experiment(folder / "grids", text, [*train, *short], rows=GRID["rows"][::2], metrics=metrics)
    (folder / "grid.py").write_text(PROGRAM)
    (folder / "build.py").write_text(BUILD)
    space = {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump({"overrides": [*train, *short], "space": space}))
    outputs, run = "output_dir=outputs", "outputs/main/{run}"
    cache = data_config("text", train=text, tokenizer="bpe-300", workers=2)
    (folder / "data.json").write_text(cache.model_dump_json())
    return {
        "train": (f"{ROOT}/train.py", [*train, outputs]),
        "evaluate": (f"{ROOT}/evaluate.py", [f"run={run}", *TASKS]),
        "generate": (f"{ROOT}/generate.py", [f"run={run}", "prompt=The", "max_new_tokens=9", "html=view.html"]),
        "export": (f"{ROOT}/export.py", [f"run={run}", "to=exported"]),
        "report": (f"{ROOT}/report.py", ["runs=outputs", f"experiments={folder}", "to=report"]),
        "grid": (
            f"{folder}/grid.py",
            [f"{folder}/grids", "tiny", "scale=smoke", "jobs=2", "evaluate=tasks=perplexity", outputs, "to=to"],
        ),
        "sweep": ("-m sweeps", [f"{folder}/sweep.yaml", "trials=4", "jobs=2", outputs]),
        "cache": (f"{folder}/build.py", [f"data={folder}/data.json"]),
    }
