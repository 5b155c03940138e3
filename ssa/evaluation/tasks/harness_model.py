"""Adapter to the model interface of lm-evaluation-harness, which must be installed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text

from ssa.config_errors import shown
from ssa.errors import UserError
from ssa.evaluation.scoring.context import EvaluationContext
from ssa.evaluation.scoring.scoring import Request
from ssa.evaluation.scoring.windows import rolling_windows


class HarnessModel(TemplateLM):
    """``lm_eval.api.model.LM`` on an `EvaluationContext`; text is tokenized as configured in the tokenizer's file."""

    def __init__(self, context: EvaluationContext) -> None:
        super().__init__()
        self.context, self.evaluated = context, context.evaluated
        self.loss_of_text: str | None = None  # of texts scored as a whole; see `Tokenizer.loss_of_text`

    @property
    def tokenizer_name(self) -> str:
        """Key of the harness's caches."""
        return self.evaluated.tokenizer.name

    @property
    def eot_token_id(self) -> int:
        return self.evaluated.end

    @property
    def prefix_token_id(self) -> int:
        return self.evaluated.prefix

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; special tokens are added as configured, unless the text already starts with the prefix."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.evaluated.prefix_text)
        return self.evaluated.tokenizer.encode_as_published(string, add_special_tokens)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> Any:
        """Log-likelihood of each continuation, in nats, and whether it is the greedy one."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        for (context, text), _, ids in requests:
            if not ids:
                raise UserError(f"tokenizer: {shown(repr(text))} has no tokens of its own after {context[-40:]!r}")
        pairs = [Request(context or [self.prefix_token_id], continuation) for _, context, continuation in requests]
        return [(sum(score.logprobs), score.greedy) for score in self.context.score(pairs)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of each text, in nats."""
        self.loss_of_text = self.evaluated.tokenizer.loss_of_text(one.args[0] for one in requests)
        prefix, max_length = self.prefix_token_id, self.evaluated.context_length
        texts = [list(rolling_windows(self.tok_encode(one.args[0]), prefix, max_length)) for one in requests]
        return [sum(sum(score.logprobs) for score in scores) for scores in self.context.score_units(texts)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Greedy continuations up to a stop sequence; sampling is refused."""

        def settings(number: int) -> str:
            return repr(requests[number].args[1])

        answers = [""] * len(requests)
        for label, group in groupby(sorted(range(len(requests)), key=settings), key=settings):
            numbers = list(group)
            contexts = [requests[number].args[0] for number in numbers]
            texts = self._generated(contexts, requests[numbers[0]].args[1], label)
            for number, text in zip(numbers, texts, strict=True):
                answers[number] = text
        return answers

    def _generated(self, contexts: Sequence[str], settings: dict[str, Any], label: str) -> list[str]:
        options = normalize_gen_kwargs(settings)
        if options.get("do_sample"):
            raise UserError(f"generation_kwargs={label}: sampling is not supported; valid: do_sample=false")
        tokenizer, max_length = self.evaluated.tokenizer, self.evaluated.context_length
        until = handle_stop_sequences(options["until"], eos=tokenizer.decode([self.eot_token_id]))
        room = max_length - options["max_gen_toks"]
        if room < 1:
            raise UserError(f"context={max_length}: no room for {options['max_gen_toks']} generated tokens")

        def ended(ids: list[int]) -> bool:
            text = tokenizer.decode(ids)
            return any(stop in text for stop in until)

        new = self.context.generate(
            [self.tok_encode(text)[-room:] or [self.prefix_token_id] for text in contexts],
            options["max_gen_toks"],
            stop={self.eot_token_id},
            ended=ended,
            label=label,
        )
        texts = (tokenizer.decode(ids, specials=False) for ids in new)
        return [postprocess_generated_text(generation=text, stop=until, think_end_token=None) for text in texts]
