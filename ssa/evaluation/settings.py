"""Settings of ``evaluate.py``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ssa.config import NonNegativeInt, PositiveInt, Section

Text = Annotated[str, Field(min_length=1)]
Length = Annotated[int, Field(ge=4)]  # tokens; `ssa.evaluation.tasks.length` measures the last quarter
Depth = Annotated[float, Field(ge=0, le=1)]
NAMED_TEXTS = ("test", "validation", "wikitext")  # values of ``text`` that are not files


class EvaluateSettings(Section):
    """One model and the tasks to evaluate it on."""

    run: Text | None = Field(
        None, description="run folder, outputs/<experiment>/<run-id>; its best weights are evaluated"
    )
    init_from: Text | None = Field(None, description="or a pretrained model: Hub id or folder")
    tasks: list[Text] = Field(
        ["perplexity", "attention"],
        description="perplexity, perplexity_lm_eval, perplexity_hf_strided, length, passkey, "
        "attention; any task of lm-evaluation-harness; paper: all columns of the paper's main table",
    )
    limit: PositiveInt | None = Field(
        None,
        description="maximum number of documents or questions per task; null: all. For quick checks only",
    )
    num_fewshot: NonNegativeInt | None = Field(
        None, description="few-shot examples in tasks of lm-evaluation-harness; null: the task's default, else 0"
    )
    batch_size: Text = Field(
        "auto", description="sequences per batch; auto: chosen for the device; does not affect results"
    )
    context: PositiveInt | None = Field(
        None,
        description="maximum input length in tokens; null: the block size of a run, the maximum of a pretrained model",
    )
    stride: PositiveInt | None = Field(
        None,
        description="tokens between window starts: perplexity (null: context) and perplexity_hf_strided (null: 512)",
    )
    text: Text | None = Field(
        None,
        description="evaluation text: test or validation (of a run), wikitext (WikiText's test split), or files, "
        "'books/*.txt'; null: test for a run, wikitext for a pretrained model",
    )
    text_column: Text = Field("text", description="column of .jsonl and .parquet files that holds the text")
    detokenize: Literal["none", "wikitext"] = Field(
        "none", description="wikitext: undo WikiText's tokenization as in lm-evaluation-harness; for perplexity_lm_eval"
    )
    lengths: list[Length] | None = Field(
        None, description="input lengths in tokens, for length and passkey; null: fractions and multiples of context"
    )
    depths: list[Depth] = Field(
        [0.0, 0.25, 0.5, 0.75, 1.0], description="passkey: positions of the key in the text, 0 (start) to 1 (end)"
    )
    trials: PositiveInt = Field(20, description="passkey: number of keys per length and depth")
    seed: NonNegativeInt = Field(0, description="passkey: random seed")
    tokenizer: Text | None = Field(
        None,
        description="replaces the pretrained model's tokenizer: Hub id, tokenizer.json, or a folder with one",
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    precision: Literal["auto", "bf16-mixed", "32-true"] = Field(
        "auto", description="auto: precision of the run, 32-true for a pretrained model"
    )
    output_dir: Text = Field(
        "outputs", description="results of a pretrained model go to pretrained/NAME in this folder"
    )
    rerun: bool = Field(False, description="rerun finished tasks")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.run is None) == (self.init_from is None):
            raise ValueError("run, init_from: set exactly one: run=RUN_FOLDER, or init_from=HUB_ID_OR_FOLDER")
        if self.tokenizer is not None and self.run is not None:
            raise ValueError(f"tokenizer={self.tokenizer}: a run has its own tokenizer; valid with init_from")
        if self.batch_size != "auto" and not (self.batch_size.isdecimal() and int(self.batch_size)):
            raise ValueError(f"batch_size={self.batch_size}: valid: auto, or a positive integer")
        return self

    @property
    def rows(self) -> int | None:
        """Rows per batch; None: automatic."""
        return None if self.batch_size == "auto" else int(self.batch_size)
