"""Perplexity by three conventions.

``perplexity``: documents in one stream, separated by end-of-text, in consecutive windows of ``context`` tokens, as in
validation; with ``stride`` below the context, windows overlap and only new tokens are scored.

``perplexity_lm_eval``: each document separately, after the prefix token, in disjoint windows, the last extended to the
left to full length: ``loglikelihood_rolling`` of lm-evaluation-harness.

``perplexity_hf_strided``: documents joined by blank lines, in windows of ``context`` tokens that advance by ``stride``,
only new tokens scored: Hugging Face's guide to the perplexity of fixed-length models
(https://huggingface.co/docs/transformers/perplexity).  The guide weights a window's mean by one token less than it
scores; here each token counts once, which changes the result by less than 1e-4 of it.  Where windows do not overlap,
the first token of each is not scored; word and byte counts assume the mean loss for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ssa.errors import UserError
from ssa.evaluation.scoring.context import EvaluationContext
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.scoring.scoring import Request, Score
from ssa.evaluation.scoring.windows import rolling_windows, stream_windows, strided_windows
from ssa.evaluation.settings import EvaluateSettings
from ssa.evaluation.task import Metric, Outcome
from ssa.evaluation.tasks.corpora import EvaluationText, load_text, text_settings
from ssa.evaluation.tasks.harness import wikitext_detokenizer
from ssa.perplexity import perplexities

CONVENTIONS = ("perplexity", "perplexity_lm_eval", "perplexity_hf_strided")
_HF_STRIDE = 512  # the default of the guide


def check_settings(name: str, settings: EvaluateSettings, context: int) -> None:
    """Refuse settings that the convention does not read, or that would skip tokens of a window of ``context``."""
    if settings.detokenize != "none" and name != "perplexity_lm_eval":
        raise UserError(f"detokenize={settings.detokenize}: valid for tasks=perplexity_lm_eval, not for {name}")
    if settings.stride is not None and settings.stride > context:
        raise UserError(f"stride={settings.stride}: would skip tokens; valid: up to context={context}")


class Perplexity:
    """Perplexity of one text by one convention."""

    has_files = False

    def __init__(self, name: str, settings: EvaluateSettings, evaluated: EvaluatedModel) -> None:
        check_settings(name, settings, evaluated.context_length)
        self.name, self._evaluate_settings = name, settings
        self._stride = {
            "perplexity": settings.stride or evaluated.context_length,
            "perplexity_lm_eval": evaluated.context_length,
            "perplexity_hf_strided": settings.stride or min(_HF_STRIDE, evaluated.context_length),
        }[name]
        self.settings: dict[str, Any] = text_settings(settings, evaluated)
        self.settings |= {"stride": self._stride, "detokenize": settings.detokenize}

    def run(self, context: EvaluationContext) -> Outcome:
        evaluated = context.evaluated
        text = load_text(self._evaluate_settings, evaluated, joined=self.name == "perplexity_hf_strided")
        units = list(self._units(text, evaluated))
        sums = [_summed(scores) for scores in context.score_units(units)]
        nll, tokens = math.fsum(nll for nll, _ in sums), sum(tokens for _, tokens in sums)
        if not tokens:
            raise UserError(f"text={text.name}: nothing to predict")
        counts, of_text = text.counts, tokens
        if self.name == "perplexity_hf_strided":  # disjoint windows omit the first token of each
            of_text = len(evaluated.tokenizer.encode_as_published(text.documents[0]))
        return Outcome(
            _metrics(nll * of_text / tokens, of_text, counts, sums, lossless=text.loss_of_text is None),
            n=counts["documents"],
            counts={"tokens": tokens, **counts},
            details={"loss_of_text": text.loss_of_text},
            versions={"text": text.hash},
        )

    def _units(self, text: EvaluationText, evaluated: EvaluatedModel) -> Iterator[list[Request]]:
        """Requests by document or window, the sampling units of the standard error."""
        tokenizer, max_length = evaluated.tokenizer, evaluated.context_length
        if self.name == "perplexity":
            ids = text.stream(tokenizer).tokens.tolist()
            yield from stream_windows(ids, max_length, self._stride, evaluated.restart_at)
        elif self.name == "perplexity_hf_strided":
            ids = tokenizer.encode_as_published(text.documents[0])
            yield from ([window] for window in strided_windows(ids, max_length, self._stride))
        else:
            for document in text.documents:
                if self._evaluate_settings.detokenize == "wikitext":
                    document = wikitext_detokenizer(document)
                ids = tokenizer.encode_as_published(document)
                yield list(rolling_windows(ids, evaluated.prefix, max_length))


def _summed(scores: Sequence[Score]) -> tuple[float, int]:
    """Negative log-likelihood in nats and number of tokens."""
    return -math.fsum(value for score in scores for value in score.logprobs), sum(len(s.logprobs) for s in scores)


def _metrics(
    nll: float, tokens: int, counts: dict[str, int], sums: Sequence[tuple[float, int]], lossless: bool
) -> dict[str, Metric]:
    """Metrics with standard errors over documents or windows; exponentials by the delta method."""
    values = perplexities(nll, tokens=tokens, words=counts["words"], n_bytes=counts["bytes"], lossless=lossless)
    error = _error(sums, values["loss"])
    slopes = {
        "loss": 1.0,
        "perplexity": values["perplexity"],
        "word_perplexity": values.get("word_perplexity", math.nan) * tokens / max(counts["words"], 1),
        "bits_per_byte": values.get("bits_per_byte", math.nan) / values["loss"],
    }
    return {
        name: Metric(value, None if error is None else error * slopes[name], higher_is_better=False)
        for name, value in values.items()
    }


def _error(sums: Sequence[tuple[float, int]], loss: float) -> float | None:
    """Standard error of the loss per token, a ratio of two sums."""
    if len(sums) < 2:
        return None
    squares = math.fsum((nll - loss * tokens) ** 2 for nll, tokens in sums)
    return math.sqrt(squares * len(sums) / (len(sums) - 1)) / sum(tokens for _, tokens in sums)
