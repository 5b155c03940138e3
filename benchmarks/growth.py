"""Cost as work grows: fitted exponents of time and memory.

A goal is what theory says plus 0.1.  Sizes are large enough that the growing part dominates.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

from benchmarks import models
from benchmarks.measure import Figure, exponent, in_process, interleaved
from benchmarks.models import SSA, Shape
from benchmarks.records import copies
from benchmarks.settings import Settings
from benchmarks.step import step
from ssa.record.runs import load

BASE = Shape(n_layer=2, d_model=128, n_head=4, length=256, batch=1, vocabulary=2048)
#: what grows -> sizes, shapes, and the goals for time and memory of a training step
STEPS: dict[str, tuple[Sequence[int], Callable[[int], Shape], str, str]] = {
    "length T": ((1024, 2048, 4096, 8192), lambda size: replace(BASE, length=size), "<= 2.1", "<= 1.1"),
    "layers": ((4, 8, 16, 32), lambda size: replace(BASE, n_layer=size), "<= 1.1", "<= 1.1"),
    "width D": ((256, 512, 1024), lambda size: replace(BASE, d_model=size, n_head=size // 32), "<= 2.1", "<= 2.1"),
    "vocabulary V": ((8192, 32768, 131072), lambda size: replace(BASE, vocabulary=size), "<= 1.1", "<= 1.1"),
}
CORPUS_MB = (1, 10, 100)
RUNS = (10, 100, 2000)

_PEAK = """
import json, torch
from benchmarks import models
from benchmarks.models import SSA, Shape
from benchmarks.step import step
from ssa.device import peak_memory_bytes
cpu = torch.device("cpu")
before = peak_memory_bytes(cpu)
run = step(*models.ours({shape!r}, SSA), {shape!r})
run(), run()
print(json.dumps({{"bytes": peak_memory_bytes(cpu) - before}}))
"""

_CORPUS = """
import json, time
from ssa.command_line.compose import configured
from ssa.device import peak_memory_bytes
from ssa.text.token_cache import prepare
import torch
data = configured("data=text", "data.train={file}", "data.tokenizer=bpe-2048", "data.cache_dir={cache}").data
began = time.perf_counter()
prepare(data)
print(json.dumps({{"seconds": time.perf_counter() - began, "bytes": peak_memory_bytes(torch.device("cpu"))}}))
"""


def figures(settings: Settings) -> list[Figure]:
    """Exponents of a step, of a corpus and of the run store."""
    found = []
    for what, (sizes, shape, time_goal, memory_goal) in STEPS.items():
        seconds = [_median(step(*models.ours(shape(size), SSA), shape(size))) for size in sizes]
        memory = [in_process(_PEAK.format(shape=shape(size)))["bytes"] for size in sizes]
        span = f"{what} from {sizes[0]:,} to {sizes[-1]:,}"
        found.append(exponent(f"time of a step over {span}", sizes, seconds, time_goal))
        found.append(exponent(f"memory of a step over {span}", sizes, memory, memory_goal))
    return found + _corpus() + _runs()


def _median(case: Callable[[], object]) -> float:
    times = sorted(interleaved({"": case}, rounds=3, warmup=1)[""])
    return times[1]


def _corpus() -> list[Figure]:
    """Tokenization into a new cache."""
    text, made = "\n\n".join(topics.values()), []
    with tempfile.TemporaryDirectory() as folder:
        for size in CORPUS_MB:
            file = Path(folder) / f"{size}.txt"
            with file.open("w") as stream:
                for _ in range(round(size * 1e6 / len(text))):
                    stream.write(f"{text}\n\n")
            made.append(in_process(_CORPUS.format(file=file, cache=Path(folder) / f"cache-{size}")))
    span = f"the corpus from {CORPUS_MB[0]} to {CORPUS_MB[-1]} MB"
    return [
        exponent(f"time of tokenization over {span}", CORPUS_MB, [one["seconds"] for one in made], "<= 1.1"),
        exponent(f"memory of tokenization over {span}", CORPUS_MB, [one["bytes"] for one in made], "<= 0.1"),
    ]


def _runs() -> list[Figure]:
    """Loading run folders."""
    times = []
    for count in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            outputs = copies(Path(folder), count)
            began = time.perf_counter()
            load(outputs)
            times.append(time.perf_counter() - began)
    return [exponent(f"time to load {RUNS[0]} to {RUNS[-1]:,} runs", RUNS, times, "<= 1.1")]
