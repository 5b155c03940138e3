"""Small models with tokenizers for evaluation tests; large weights make their attention sharp."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from pretrained_folders import BOTH, VOCAB, small, tensors_of, write_export
from safetensors.torch import save_file

from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.scoring.scoring import Request
from ssa.model.config import TemperatureConfig
from ssa.model.transformer import Transformer
from ssa.text.tokenization import train_bpe

EVERYTHING = TemperatureConfig(name="all", query=BOTH, key=BOTH, value=BOTH, output=BOTH)
VANILLA = TemperatureConfig()
TEXTS = list(topics.values())
FAR = 0.15  # standard deviation of the noise added to each parameter


@functools.cache
def tokenizer_json() -> str:
    """A byte-level BPE with fewer tokens than the models."""
    return train_bpe(iter([text[:4000] for text in TEXTS[:10]]), VOCAB - 50)


def write_model_folder(folder: Path, model_type: str, temperature: TemperatureConfig = VANILLA, **fields: Any) -> Path:
    """Write an exported model with a tokenizer."""
    write_export(folder, small(model_type, temperature, **fields))
    tensors, generator = tensors_of(folder), torch.Generator().manual_seed(4)
    for tensor in tensors.values():
        tensor += FAR * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    return folder


def evaluated_model(folder: Path, **settings: Any) -> EvaluatedModel:
    """The model in a folder, on the CPU."""
    return EvaluatedModel(init_from=str(folder), device="cpu", **settings)


@torch.inference_mode()
def plain_score(model: Transformer, request: Request, context: int) -> tuple[list[float], bool]:
    """Reference score of one request, from all of its logits."""
    tokens = [*request.context, *request.continuation][-(context + 1) :]
    logits = model(torch.tensor([tokens[:-1]]))[0, -len(request.continuation) :].float()
    wanted = torch.tensor(request.continuation)
    logprobs = logits.log_softmax(-1).gather(-1, wanted[:, None]).squeeze(-1)
    return logprobs.tolist(), bool((logits.argmax(-1) == wanted).all())


class Seen:
    """Records the forward passes of a model.

    Attributes:
        shapes: (B, T) of each forward pass.
    """

    def __init__(self, model: Transformer, fail_above: int | None = None, stop_after: int | None = None) -> None:
        """Batches of more than ``fail_above`` rows run out of memory; the pass after ``stop_after`` is interrupted."""
        self.shapes: list[tuple[int, int]] = []
        through = model.hidden

        def hidden(ids: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
            if fail_above is not None and len(ids) > fail_above:
                raise torch.OutOfMemoryError("CUDA out of memory")
            if len(self.shapes) == stop_after:
                raise KeyboardInterrupt
            self.shapes.append((ids.size(0), ids.size(1)))
            return through(ids, *arguments, **named)

        model.hidden = hidden  # type: ignore[method-assign]

    @property
    def tokens(self) -> int:
        return sum(rows * length for rows, length in self.shapes)


def sums(scores: Sequence[tuple[Sequence[float], bool]]) -> list[float]:
    """The log-likelihood of each request."""
    return [sum(logprobs) for logprobs, _ in scores]
