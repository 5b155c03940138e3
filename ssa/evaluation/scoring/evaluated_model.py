"""The model that is evaluated: of a run folder, or a pretrained one; and what decides how it is used."""

from __future__ import annotations

import functools
import re
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssa.config import Config
from ssa.errors import UserError
from ssa.files import hash_of, parse_json
from ssa.model.config import ModelConfig
from ssa.pretrained.source import describe, size_label, small_files, weights_hash

if TYPE_CHECKING:
    from ssa.model.transformer import Transformer
    from ssa.text.tokenization import Tokenizer

_TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json")


class EvaluatedModel:
    """A model under evaluation; weights and tokenizer are read when they are first asked for.

    Attributes:
        name: for people.
        folder: where its ``evaluation/`` is.
        config: of the run; None for a pretrained model.
        model_config: its architecture and temperatures.
        context_length: the longest input it is given, in tokens.
        device: what it runs on.
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
        """A model by its run folder, or by its name.

        Args:
            run: a run folder.
            init_from: a folder in Hugging Face's format, or an id of the Hub.
            tokenizer: in place of the pretrained model's own: an id of the Hub, a tokenizer.json, a folder with one.
            context: default: the block size of a run, the positions of a pretrained model.
            device: as ``trainer.device``.
            precision: ``auto`` is that of the run, of a pretrained model float32.
            output_dir: where results of a pretrained model go.

        Raises:
            UserError: there is no such model, or it cannot be used so.
        """
        from ssa.device import resolve_device

        self.init_from, self._tokenizer = init_from, tokenizer
        self.config: Config | None = None
        if run is not None:
            from ssa.record.run_model import load_run_config

            self.config = load_run_config(run)
            self.model_config: ModelConfig = self.config.model
            self.folder, self.name = Path(run), Path(run).resolve().name
        else:
            assert init_from is not None, "the settings ask for one of the two"
            self.model_config = describe(init_from).model
            self.name, label = init_from, re.sub(r"[^A-Za-z0-9._-]+", "-", init_from).strip("-.")
            if Path(init_from).expanduser().is_dir():
                self.name = str(Path(init_from).expanduser().resolve())
                label = f"{size_label(init_from)}-{hash_of([self.name])[:6]}"
            self.folder = Path(output_dir) / "pretrained" / label
        self.context_length = self._context(context)
        self.device = resolve_device(device, field="device")
        self.precision = self._precision(precision)

    @functools.cached_property
    def weights_hash(self) -> str:
        """Of its weights: what an outcome is of."""
        return self._hash_of_weights()

    def _hash_of_weights(self) -> str:
        if self.init_from is not None:
            return weights_hash(self.init_from)
        from ssa.record.run_model import hash_of_weights

        return hash_of_weights(self.folder)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer.

        Raises:
            UserError: it cannot be had, is damaged, or has more tokens than the model.
        """
        from ssa.pretrained.load import check_vocabulary
        from ssa.text.tokenization import published_tokenizer

        if self.config is not None:
            from ssa.record.run_model import load_run_tokenizer

            tokenizer = load_run_tokenizer(self.folder, self.config)
        else:
            tokenizer = published_tokenizer(self._tokenizer or str(self.init_from), field="tokenizer")
        check_vocabulary(self.model_config, tokenizer, field="tokenizer")
        return tokenizer

    @functools.cached_property
    def prefix(self) -> int:
        """The token that stands before a text: of a run, end-of-text, as in training; of a pretrained model, what its
        tokenizer_config.json calls ``bos_token``, else ``eos_token``, as lm-evaluation-harness has it.
        """
        return self._named_token("bos_token", "eos_token")

    @functools.cached_property
    def end(self) -> int:
        """The token that ends an answer: likewise end-of-text, or ``eos_token``."""
        return self._named_token("eos_token")

    @property
    def restart_at(self) -> int | None:
        """The token at which its attention begins anew: end-of-text under ``data.document_mask``."""
        return self.tokenizer.end_of_text if self.config and self.config.data.document_mask else None

    @property
    def prefix_text(self) -> str:
        """The prefix, written out."""
        return self.tokenizer.decode([self.prefix])

    @functools.cached_property
    def model(self) -> Transformer:
        """In float32 on its device, in evaluation mode.

        Raises:
            UserError: its weights are damaged, or do not fit.
        """
        if self.config is not None:
            from ssa.record.run_model import load_run

            model = load_run(self.folder)[1]
        else:
            from ssa.pretrained.load import load_pretrained

            model = load_pretrained(self.model_config, str(self.init_from), seed=0)
        if self._hash_of_weights() != self.weights_hash:
            raise UserError(f"{self.folder}: its best weights have just changed, it is training; try again")
        import torch

        try:
            return model.to(self.device).eval()
        except torch.OutOfMemoryError:
            raise UserError(f"device={self.device.type}: out of memory for the model alone; try device=cpu") from None

    def autocast(self) -> AbstractContextManager[Any]:
        """Its precision, as training has it."""
        import torch

        if self.precision == "32-true":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def check_length(self, field: str, length: int) -> None:
        """See that it has positions for so many tokens; rotary ones do not end.

        Raises:
            UserError: learned positions end before.
        """
        limit = self.model_config.max_positions
        if self.model_config.positions == "learned" and length > limit:
            raise UserError(f"{field}={length}: over the model's learned positions; valid: up to {limit}")

    @property
    def trained_at(self) -> int:
        """The length of input it was trained at: the block size of a run, the positions of a pretrained model."""
        return self.config.data.block_size if self.config else self.model_config.max_positions

    @property
    def described(self) -> str:
        """Whose weights, and how they are used, in a line."""
        use = f"context {self.context_length}, {self.device.type}, {self.precision}"
        if self.config is None:
            return f"{self.name}: {use}"
        from ssa.record.checkpoint import read
        from ssa.record.run_model import best_weights
        from ssa.record.run_record import read_status

        with suppress(UserError):  # what is damaged is told when it is needed
            step = read(best_weights(self.folder)).get("step")
            use = f"weights of step {step}, the run is {read_status(self.folder).status}; {use}"
        return f"{self.name}: {use}"

    @property
    def plain(self) -> dict[str, Any]:
        """Of its use, what decides numbers."""
        return {
            "weights_hash": self.weights_hash,
            "tokenizer": self.tokenizer.hash,
            "prefix_token": self.prefix_text,
            "context": self.context_length,
            "precision": self.precision,
        }

    @property
    def _tokenizer_home(self) -> str:
        """Where the files beside its tokenizer are."""
        name = self._tokenizer or str(self.init_from)
        path = Path(name).expanduser()
        return str(path.parent) if path.suffix == ".json" and path.is_file() else name

    def _named_token(self, *keys: str) -> int:
        """The first of these that a pretrained model's files name, else end-of-text."""
        contents = small_files(self._tokenizer_home, _TOKENIZER_FILES) if self.init_from is not None else {}
        for name, content in contents.items():
            values = parse_json(content, f"{self._tokenizer_home}: {name}")
            for key in keys:
                token = values.get(key)
                token = token.get("content") if isinstance(token, dict) else token
                found = self.tokenizer.token_id(token) if isinstance(token, str) else None
                if found is not None:
                    return found
        return self.tokenizer.end_of_text

    def _context(self, asked: int | None) -> int:
        if asked is None:
            return self.trained_at
        self.check_length("context", asked)
        return asked

    def _precision(self, asked: str) -> str:
        if asked != "auto" or self.config is None:
            return "32-true" if asked == "auto" else asked
        from ssa.record.run_files import read_environment

        return str(read_environment(self.folder).get("precision") or "32-true")
