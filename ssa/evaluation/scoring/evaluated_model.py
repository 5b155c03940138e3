"""The model under evaluation: a trained run or a pretrained model, with its context length and precision."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from ssa.config import Config
from ssa.device import resolve_device
from ssa.errors import UserError
from ssa.files import expanded, hash_of
from ssa.model.config import ModelConfig
from ssa.model.language_model import LanguageModel
from ssa.pretrained.load import check_vocabulary, load_pretrained
from ssa.pretrained.source import describe, size_label, weights_hash
from ssa.pretrained.special_tokens import BEGIN, END, special_token
from ssa.record.checkpoint import read
from ssa.record.run_files import read_environment
from ssa.record.run_model import best_weights, hash_of_weights, load_run, load_run_config, load_run_tokenizer
from ssa.record.run_record import read_status
from ssa.text.tokenization import Tokenizer, published_tokenizer


def check_length(model: ModelConfig, field: str, length: int) -> None:
    """Refuse an input length beyond the model's learned positions; rotary positions are unlimited."""
    if model.positions == "learned" and length > model.max_positions:
        raise UserError(f"{field}={length}: exceeds the model's learned positions; valid: up to {model.max_positions}")


class EvaluatedModel:
    """A model under evaluation; weights and tokenizer are loaded on first use.

    Attributes:
        name: display name.
        folder: parent of its ``evaluation/`` folder.
        config: config of the run; None for a pretrained model.
        model_config: architecture and temperatures.
        context_length: maximum input length in tokens.
        device: where the model runs.
        precision: ``32-true`` or ``bf16-mixed``.
    """

    def __init__(
        self,
        *,
        run: str | None = None,
        init_from: str | None = None,
        tokenizer: str | None = None,
        context: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        output_dir: str = "outputs",
    ) -> None:
        """Describe a run or a pretrained model; the arguments are fields of `EvaluateSettings`.

        Raises:
            UserError: the model does not exist, or does not support the settings.
        """
        self.init_from, self._tokenizer = init_from, tokenizer
        self.config: Config | None = None
        if run is not None:
            self.config = load_run_config(run)
            self.model_config: ModelConfig = self.config.model
            self.folder, self.name = Path(run), Path(run).resolve().name
        else:
            assert init_from is not None, "EvaluateSettings requires one"
            self.model_config = describe(init_from).model
            self.name, label = init_from, re.sub(r"[^A-Za-z0-9._-]+", "-", init_from).strip("-.")
            if expanded(init_from).is_dir():
                self.name = str(expanded(init_from).resolve())
                label = f"{size_label(init_from)}-{hash_of([self.name])[:6]}"
            self.folder = Path(output_dir) / "pretrained" / label
        self.context_length = context or self.trained_at
        if context is not None:
            check_length(self.model_config, "context", context)
        self.device = resolve_device(device, field="device")
        if precision == "auto":
            precision = str((self.config and read_environment(self.folder).get("precision")) or "32-true")
        self.precision = precision

    @functools.cached_property
    def weights_hash(self) -> str:
        """Hash of the weights, which identifies outcomes."""
        return self._hash_of_weights()

    def _hash_of_weights(self) -> str:
        return hash_of_weights(self.folder) if self.init_from is None else weights_hash(self.init_from)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Loaded on first use.

        Raises:
            UserError: unavailable, damaged, or larger than the model's vocabulary.
        """
        if self.config is not None:
            tokenizer = load_run_tokenizer(self.folder, self.config)
        else:
            tokenizer = published_tokenizer(self._tokenizer or str(self.init_from), field="tokenizer")
        check_vocabulary(self.model_config, tokenizer, field="tokenizer")
        return tokenizer

    @functools.cached_property
    def prefix(self) -> int:
        """The token before a text: end-of-text for a run, as in training; ``bos_token``, else ``eos_token``, of a
        pretrained model's tokenizer_config.json, as in lm-evaluation-harness.
        """
        return self._special_token(BEGIN)

    @functools.cached_property
    def end(self) -> int:
        """The token that ends an answer: end-of-text for a run, ``eos_token`` for a pretrained model."""
        return self._special_token(END)

    @property
    def restart_at(self) -> int | None:
        """The token at which attention restarts: end-of-text under ``data.document_mask``."""
        return self.tokenizer.end_of_text if self.config and self.config.data.document_mask else None

    @property
    def prefix_text(self) -> str:
        return self.tokenizer.decode([self.prefix])

    @functools.cached_property
    def model(self) -> LanguageModel:
        """The model in float32 on its device, in evaluation mode.

        Raises:
            UserError: the weights are damaged, do not match the config, or exceed the device's memory.
        """
        if self.config is not None:
            model = load_run(self.folder)[1]
        else:
            model = load_pretrained(self.model_config, str(self.init_from), seed=0)
        if self._hash_of_weights() != self.weights_hash:
            raise UserError(f"{self.folder}: the best weights changed while loading (the run is training); try again")
        try:
            return model.to(self.device).eval()
        except torch.OutOfMemoryError:
            raise UserError(f"device={self.device.type}: out of memory for the model alone; try device=cpu") from None

    def autocast(self) -> AbstractContextManager[Any]:
        """Autocast to the model's precision, as in training."""
        is_full = self.precision == "32-true"
        return nullcontext() if is_full else torch.autocast(self.device.type, dtype=torch.bfloat16)

    def within_positions(self, task: str, lengths: Sequence[int]) -> list[int]:
        """The default lengths of a task without those beyond the model's learned positions, which a line names.

        Raises:
            UserError: none is left.
        """
        limit = self.model_config.max_positions if self.model_config.positions == "learned" else math.inf
        beyond = [length for length in lengths if length > limit]
        if len(beyond) == len(lengths):
            raise UserError(f"lengths: none of {task}'s defaults fits the model's {limit} positions; valid: lengths=N")
        if beyond:
            listed = ",".join(map(str, beyond))
            print(f"{task}: lengths={listed} left out: beyond the model's {limit} learned positions", flush=True)
        return [length for length in lengths if length <= limit]

    @property
    def trained_at(self) -> int:
        """Training length: the block size of a run, the number of positions of a pretrained model."""
        return self.config.data.block_size if self.config else self.model_config.max_positions

    def multiple_of_training(self, length: int) -> str | None:
        """``2x`` for twice the training length; None if it is no multiple."""
        multiple, rest = divmod(length, self.trained_at)
        return f"{multiple}x" if multiple and not rest else None

    @property
    def described(self) -> str:
        """One line for the console: name, weights, settings."""
        weights = ""
        if self.config is not None:
            with suppress(UserError):  # damage is reported once the file is needed
                step = read(best_weights(self.folder)).get("step")
                weights = f"weights of step {step}, the run is {read_status(self.folder).status}; "
        return f"{self.name}: {weights}context {self.context_length}, {self.device.type}, {self.precision}"

    @property
    def plain(self) -> dict[str, Any]:
        """Everything about the model that determines the numbers, as plain values."""
        found = {"weights_hash": self.weights_hash}
        if self.config is None:  # a config.json can change while the weights stay
            model = {key: value for key, value in self.model_config.plain().items() if key not in ("name", "size")}
            found["model_hash"] = hash_of(model)
        return {
            **found,
            "tokenizer": self.tokenizer.hash,
            "prefix_token": self.prefix_text,
            "context": self.context_length,
            "precision": self.precision,
        }

    def _special_token(self, keys: tuple[str, ...]) -> int:
        if self.init_from is None:
            return self.tokenizer.end_of_text
        return special_token(self._tokenizer or self.init_from, self.tokenizer, keys)
