"""The model and tokenizer of a run folder, and text generation with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssa.config import Config, DataConfig
from ssa.errors import NotFinite, UserError
from ssa.files import cache_root, hash_of_file
from ssa.record import checksums
from ssa.record.run_files import load_config
from ssa.text.corpus import open_corpus
from ssa.text.tokenization import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from ssa.model.language_model import LanguageModel


def load_run(folder: str | Path) -> tuple[Config, LanguageModel, Tokenizer]:
    """The config, best model and tokenizer of a run, finished or not.

    The model is on the CPU, in float32 and in evaluation mode.

    Raises:
        UserError: the folder is not a run folder, has no weights yet, or has a damaged file.
    """
    config = load_run_config(folder)
    from ssa.pretrained.load import without_weights  # imports torch, which takes seconds: after the folder is checked
    from ssa.record.checkpoint import read_best

    tokenizer = load_run_tokenizer(folder, config)
    checksums.verify(Path(folder), best_weights("").as_posix())
    best = read_best(best_weights(folder), config)
    rows = best.vocab_size
    if tokenizer.vocab_size > rows or (config.model.vocab_size is None and tokenizer.vocab_size != rows):
        raise UserError(
            f"{Path(folder) / 'tokenizer.json'}: {tokenizer.vocab_size:,} tokens, but the model has {rows:,}: "
            "it is not the tokenizer of this run"
        )
    model = without_weights(config.model, rows)
    best.load_into(model)
    return config, model.eval(), tokenizer


def load_run_config(folder: str | Path) -> Config:
    """The config of a run that has weights; does not import torch.

    Raises:
        UserError: the folder is not a run folder, its config is damaged, or it has no weights yet.
    """
    path = Path(folder)
    if not (path / "config.yaml").is_file() and (path / "config.json").is_file():
        raise UserError(
            f"{folder} is an exported model, not a run folder; give the run folder it was exported from, "
            f"or init_from={folder}"
        )
    config = load_config(folder)
    checksums.verify(path, "config.yaml", "tokenizer.json")
    if not best_weights(folder).is_file():
        raise UserError(
            f"{folder} has no {best_weights('')} yet: it is written at the first validation, "
            f"after trainer.eval_every={config.trainer.eval_every} steps"
        )
    return config


def load_run_tokenizer(folder: str | Path, config: Config) -> Tokenizer:
    """The tokenizer in a run folder; if an old run has none, the one named in its config.

    Raises:
        UserError: the file is damaged, or the tokenizer is not available.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.exists():
        return load_tokenizer(config.data, open_corpus(config.data))
    try:
        return Tokenizer(config.data.tokenizer, path.read_text(encoding="utf-8"))
    except (OSError, ValueError, UserError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def with_own_tokenizer(data: DataConfig, folder: str | Path) -> DataConfig:
    """The data config with the tokenizer kept in the run folder, which needs no other folder and no network."""
    kept = Path(folder) / "tokenizer.json"
    return data.model_copy(update={"tokenizer": str(kept)}) if kept.is_file() else data


def continue_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    write: Callable[[str], None] = lambda text: None,
    begin: int | None = None,
    end: int | None = None,
    **sampling: Any,
) -> list[int]:
    """Continue a text, up to the token that ends it.

    Args:
        model, tokenizer: of a run, or pretrained.
        prompt: may be empty.
        max_new_tokens: largest number of new tokens.
        write: called with the prompt, then with pieces of the continuation, in whole characters.
        begin, end: the tokens before a text and after it; default: end-of-text, as in training.
        sampling: ``temperature``, ``top_p``, ``greedy`` and ``seed``, as in `ssa.model.generation.generate`.

    Returns:
        All tokens: ``begin``, the prompt, the continuation.

    Raises:
        UserError: the text would be longer than the learned positions, or the model's logits are not finite.
    """
    from ssa.model.generation import TextStream, check_length, generate

    first, last = (tokenizer.end_of_text if token is None else token for token in (begin, end))
    ids = [first, *tokenizer.encode_batch([prompt])[0]]
    try:
        check_length(model.config, len(ids), max_new_tokens)
    except ValueError as error:
        raise UserError(str(error)) from None
    write(prompt)
    stream = TextStream(tokenizer.decode)
    try:
        (new,) = generate(
            model,
            [ids],
            max_new_tokens,
            **sampling,
            stop=[last],
            on_token=lambda _, token: write(stream.push(token)),
        )
    except FloatingPointError as error:
        raise NotFinite(*error.args) from None
    write(stream.flush())
    return ids + new


def hash_of_weights(folder: str | Path) -> str:
    """SHA-256 of a run's best weights."""
    return hash_of_file(best_weights(folder), cache_root(None))


def best_weights(folder: str | Path) -> Path:
    """The checkpoint with the lowest validation loss."""
    return Path(folder) / "checkpoints" / "best.ckpt"
