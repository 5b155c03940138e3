"""Text generation with a key-value cache.

The *sampling temperature* here divides the next token's logits, as usual.  It is unrelated to the inverse temperatures
of attention, which belong to the model.

Letters: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from ssa.model.config import ModelConfig
from ssa.model.kv_cache import visible_after_padding
from ssa.model.language_model import LanguageModel

_PAD = 0  # any id: no token sees it


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    greedy: bool = False,
    seed: int = 0,
    stop: Collection[int] = (),
    ended: Callable[[list[int]], bool] = lambda tokens: False,
    on_token: Callable[[int, int], None] = lambda row, token: None,
) -> list[list[int]]:
    """Continuations of token sequences, without dropout.

    A row is sampled with ``seed`` plus its number: it does not depend on the rest of the batch, up to the rounding of
    the logits.

    Args:
        model: on any device.
        prompts: B sequences of at least one token each.
        max_new_tokens: largest number of new tokens per row.
        temperature: the sampling temperature, which divides the logits; not an inverse temperature of attention.
        top_p: sample from the smallest set of most likely tokens whose probabilities sum to this.
        greedy: choose the most likely token instead of sampling.
        seed: of the sampling.
        stop: ids that end a row.
        ended: called with a row's new tokens after each token; True ends the row.
        on_token: called with row and id of each new token.

    Returns:
        The new tokens of each row, without the prompt and the id that ended it.

    Raises:
        FloatingPointError: the logits are not finite; its arguments are what was found, and its value.
        ValueError: a setting is out of range, a prompt is empty, or a row would exceed the learned positions.
    """
    _check(model, prompts, max_new_tokens, temperature, top_p)
    if not prompts:
        return []
    length = max(len(prompt) for prompt in prompts)
    padding = [length - len(prompt) for prompt in prompts]
    ids = torch.tensor([[_PAD] * pads + list(prompt) for pads, prompt in zip(padding, prompts, strict=True)])
    # Without padding no mask is needed.
    visible_keys = visible_after_padding(torch.tensor(padding, device=model.device), length) if any(padding) else None
    cache = model.empty_cache()
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(prompts))]
    rows: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            hidden = model.hidden(ids.to(model.device), visible_keys=visible_keys, cache=cache)
            logits = model.logits(hidden[:, -1])  # (B, V)
            if not (peaks := logits.amax(dim=-1)).isfinite().all():  # the peak is NaN if any logit is
                raise FloatingPointError("largest logit", peaks[~peaks.isfinite()][0].item())
            if greedy:
                chosen = logits.argmax(dim=-1).tolist()
            else:
                uniform = torch.cat([torch.rand(1, generator=one, dtype=torch.float64) for one in generators])
                chosen = sample(logits, uniform, temperature, top_p).tolist()
            for row in sorted(running):
                if chosen[row] in stop:
                    running.remove(row)
                    continue
                rows[row].append(chosen[row])
                on_token(row, chosen[row])
                if ended(rows[row]):
                    running.remove(row)
            if not running:
                break
            ids = torch.tensor(chosen)[:, None]  # (B, 1); rows that have ended continue unread
            visible_keys = visible_keys[:, -1:] + 1 if visible_keys is not None else None
    finally:
        model.train(was_training)
    return rows


def check_length(config: ModelConfig, prompt_tokens: int, max_new_tokens: int) -> None:
    """Checks that a prompt and its continuation fit the learned positions; rotary positions have no limit.

    Raises:
        ValueError: they do not fit.
    """
    limit = config.max_positions
    if config.positions == "learned" and prompt_tokens + max_new_tokens > limit:
        raise ValueError(
            f"max_new_tokens={max_new_tokens}: with a prompt of {prompt_tokens} tokens over the model's {limit} "
            f"positions; valid: up to {max(0, limit - prompt_tokens)}"
        )


def sample(logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """One token per row by inverse transform sampling over the tokens in order of decreasing probability.

    Args:
        logits: (B, V).
        uniform: random numbers in [0, 1), (B,).
        temperature: the sampling temperature.
        top_p: probability mass of the nucleus (arXiv 1904.09751), the smallest set of most likely tokens to reach it.

    Returns:
        ids, (B,), on the CPU.
    """
    scaled = logits.float().cpu().double() / temperature  # in float32, 50,000 probabilities do not sum to 1
    probabilities, ids = scaled.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    mass = probabilities.cumsum(dim=-1)
    last = ((mass - probabilities) < top_p).sum(dim=-1, keepdim=True) - 1  # of the nucleus, (B, 1)
    reached = mass.gather(-1, last)
    index = torch.searchsorted(mass, uniform[:, None] * reached, right=True)
    return ids.gather(-1, index.minimum(last)).squeeze(-1)


class TextStream:
    """Decodes tokens one by one into whole characters: a token may hold only part of a character's bytes."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._before: list[int] = []  # some tokenizers decode a token differently at the start of a text
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text completed by this token; may be empty."""
        self._pending.append(token)
        if self._text().endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        return self.flush()

    def flush(self) -> str:
        """The pending text, with U+FFFD for an incomplete character."""
        text = self._text()
        if self._pending:
            self._before, self._pending = self._pending, []
        return text

    def _text(self) -> str:
        return self._decode([*self._before, *self._pending])[len(self._decode(self._before)) :]


def _check(
    model: LanguageModel, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, top_p: float
) -> None:
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens}: valid: >= 0")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature:g}: the sampling temperature; valid: > 0")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p:g}: valid: > 0 and <= 1")
    if not all(prompts):
        raise ValueError("a prompt has no tokens; use the end-of-text token to start a text")
    check_length(model.config, max((len(prompt) for prompt in prompts), default=0), max_new_tokens)
