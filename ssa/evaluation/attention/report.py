"""Attention report: entropy, spikiness, dilution, temperatures and query-key norms on a fixed batch.

For a run, the batch is its validation probe, and ``details.statistics`` equals what ``metrics.jsonl`` logs for the same
weights.  For a pretrained model, it is the beginning of ``text``, each window preceded by the model's prefix token.
`ssa.evaluation.attention.tables` describes the tables.  Metrics:

``attention_entropy``, ``attention_entropy_normalized``, ``attention_spikiness``: as in validation;
``attention_max_logit``: the maximum over all layers.
``attention_dilution``: least-squares slope of entropy in log n over softmax rows, mean over heads.  1: uniform
    attention, where each new key takes weight from all others; 0: attention stays equally sharp in long contexts.
``query_key_norm``: operator norm of a head's query-key matrix, `ssa.model.attention_stats.query_key_norms`, mean over
    heads; ``query_key_tau_norm``: multiplied by each token's query temperature, mean over heads and tokens (figure 2).
``temperature/query/mean``, ``std``: over layers, heads and tokens; also for key, value and output.
    ``correlation_log_n``, ``correlation_log_count``: correlation over tokens of the temperature (mean over layers and
    heads) with log n and with the log frequency of the token; omitted if either is constant.

Dilution and correlations with log n are omitted where layers differ in n, as with sliding windows in some of them.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ssa.errors import NotFinite, UserError
from ssa.evaluation.attention.measure import Batch, Measured, correlation, measure, slope
from ssa.evaluation.attention.tables import extremes, tables_of, write_tables
from ssa.evaluation.results import identity_of
from ssa.evaluation.scoring.context import EvaluationContext
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.settings import EvaluateSettings
from ssa.evaluation.task import Metric, Outcome
from ssa.evaluation.tasks.corpora import load_text, run_corpus, text_settings
from ssa.text.token_blocks import probe_windows, visible_in_documents
from ssa.viz import plot_style

_PROBE = {"text": "validation", "limit": None}  # the data of a run
_SEQUENCES, _WINDOW = 8, 2048  # limits for a pretrained model


class Attention:
    name = "attention"
    has_files = True

    def __init__(self, settings: EvaluateSettings, evaluated: EvaluatedModel) -> None:
        if evaluated.context_length == 1:
            raise UserError("context=1: attention over a single key is constant; valid for attention: 2 or more")
        self._evaluate_settings = settings
        run = evaluated.config
        self._window = evaluated.context_length if run or settings.context else min(evaluated.context_length, _WINDOW)
        sequences = run.trainer.probe_sequences if run else _SEQUENCES
        text = text_settings(settings.model_copy(update=_PROBE) if run else settings, evaluated)
        self.settings: dict[str, Any] = {**text, "sequences": sequences, "window": self._window}

    def run(self, context: EvaluationContext) -> Outcome:
        evaluated, folder = context.evaluated, context.folder / self.name
        if reason := evaluated.model.unmeasured:
            raise UserError(f"attention: cannot be measured: {reason}")
        batch = self._batch(evaluated)
        context.progress.expect(batch.ids.numel())
        with evaluated.autocast():
            measured = measure(evaluated.model, batch, context.progress.advance)
        for name, value in measured.metrics.items():
            if not math.isfinite(value):
                raise NotFinite(name, value)
        tables = tables_of(measured, evaluated.tokenizer.decode)
        context.journal.begin_files()
        files = write_tables(tables, folder, identity_of(self.settings, evaluated))
        if plot_style.available():
            from ssa.evaluation.attention.plots import draw

            files += draw(tables, folder)
        else:
            print(f"attention: no plots without matplotlib; {plot_style.INSTALL}, then rerun=true", flush=True)
        for stale in set(folder.glob("*.*")).difference(files):  # from another outcome
            stale.unlink()
        rows, length = batch.ids.shape
        split = "val/" if evaluated.config else ""
        return Outcome(
            {name: Metric(value) for name, value in summary_of(measured).items()},
            n=rows,
            counts={"tokens": rows * length, "window": length},
            details={
                "statistics": {f"{split}{name}": value for name, value in measured.metrics.items()},
                "frequencies": "of the train split" if evaluated.config else "of the text",
                "tokens": extremes(tables),
                "files": [str(path.relative_to(context.folder)) for path in files],
            },
            versions={"text": batch.text_hash},
        )

    def _batch(self, evaluated: EvaluatedModel) -> Batch:
        vocabulary, sequences = evaluated.model.vocab_size, self.settings["sequences"]
        if evaluated.config is None:
            text = load_text(self._evaluate_settings, evaluated)
            stream = text.stream(evaluated.tokenizer)
            ids = probe_windows(stream.tokens[1:], self._window - 1, sequences)  # without the leading end-of-text
            ids = torch.cat([torch.full((len(ids), 1), evaluated.prefix), ids], dim=1)
            return Batch(ids.to(evaluated.device), None, stream.token_counts(vocabulary), text.hash)
        data = evaluated.config.data
        corpus = run_corpus(evaluated)
        tokens = corpus.split("validation").tokens[: data.max_eval_tokens]
        ids = probe_windows(tokens, self._window, sequences).to(evaluated.device)
        visible_keys = visible_in_documents(ids, corpus.tokenizer.end_of_text) if data.document_mask else None
        return Batch(ids, visible_keys, corpus.split("train").token_counts(vocabulary), corpus.fingerprint)


def summary_of(measured: Measured) -> dict[str, float]:
    numbers = {name: measured.metrics[name] for name in (f"attention_{mean}" for mean in measured.means)}
    numbers["attention_max_logit"] = float(measured.rows["max_logit"].max())
    numbers["attention_dilution"] = float(slope(measured.rows["entropy"], measured.log_n).mean())
    numbers["query_key_norm"] = float(measured.norms.mean())
    if measured.tau_norms is not None:
        numbers["query_key_tau_norm"] = float(measured.tau_norms.mean())
    for name, tau in measured.temperatures.items():
        mean = tau.mean((0, 1), dtype=float)  # (N,)
        numbers[f"temperature/{name}/mean"] = float(mean.mean())
        numbers[f"temperature/{name}/std"] = float(tau.std(dtype=float))
        numbers[f"temperature/{name}/correlation_log_n"] = float(correlation(mean, measured.log_n))
        numbers[f"temperature/{name}/correlation_log_count"] = float(correlation(mean, measured.log_count))
    return {name: value for name, value in numbers.items() if not math.isnan(value)}
