"""What the command line of ``evaluate.py`` sets."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ssa.model.config import PositiveInt, Section

Text = Annotated[str, Field(min_length=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Depth = Annotated[float, Field(ge=0, le=1)]


class EvaluateSettings(Section):
    """One model, and what to evaluate it on."""

    run: Text | None = Field(None, description="the folder of a run, outputs/<experiment>/<run-id>; its best weights")
    init_from: Text | None = Field(None, description="or a pretrained model: an id of the Hub, or a folder")
    tasks: list[Text] = Field(
        ["perplexity", "attention"],
        description="perplexity, perplexity_lm_eval, perplexity_hf_strided, length, passkey, "
        "attention; any task of lm-evaluation-harness; paper: the columns of the paper's main table",
    )
    limit: PositiveInt | None = Field(
        None, description="only the first so many documents or questions of a task; null: all. Not for publication"
    )
    num_fewshot: NonNegativeInt | None = Field(
        None, description="examples before each question of lm-evaluation-harness; null: the task's own, else 0"
    )
    batch_size: Text = Field(
        "auto", description="rows at once; auto: as many as suit the device; no number depends on it"
    )
    context: PositiveInt | None = Field(
        None,
        description="the longest input in tokens; null: the block size of the run, the pretrained model's positions",
    )
    stride: PositiveInt | None = Field(
        None,
        description="tokens between windows of perplexity (null: the context) and perplexity_hf_strided (null: 512)",
    )
    text: Text | None = Field(
        None,
        description="what perplexities are of: test or validation (of the run), wikitext (WikiText's test split), or "
        "files, 'books/*.txt'; null: test of a run, wikitext of a pretrained model",
    )
    text_column: Text = Field("text", description="of .jsonl and .parquet files")
    detokenize: Literal["none", "wikitext"] = Field(
        "none", description="wikitext: undo WikiText's spacing as lm-evaluation-harness does; for perplexity_lm_eval"
    )
    lengths: list[PositiveInt] | None = Field(
        None, description="of the tasks length and passkey, in tokens; null: fractions and multiples of the context"
    )
    depths: list[Depth] = Field(
        [0.0, 0.25, 0.5, 0.75, 1.0], description="of the pass key in its text: 0 the beginning, 1 the end"
    )
    trials: PositiveInt = Field(20, description="pass keys for each length and depth")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of the pass keys")
    tokenizer: Text | None = Field(
        None,
        description="in place of the pretrained model's own: an id of the Hub, a tokenizer.json, a folder with one",
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    precision: Literal["auto", "bf16-mixed", "32-true"] = Field(
        "auto", description="auto: the run's own, as its validation; of a pretrained model 32-true"
    )
    output_dir: Text = Field("outputs", description="where the results of a pretrained model go, in pretrained/NAME")
    rerun: bool = Field(False, description="run again what is finished")

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if (self.run is None) == (self.init_from is None):
            raise ValueError("run, init_from: set one of the two: run=RUN_FOLDER, or init_from=HUB_ID_OR_FOLDER")
        if self.tokenizer is not None and self.run is not None:
            raise ValueError(f"tokenizer={self.tokenizer}: a run has its own; valid with init_from")
        return self

    @model_validator(mode="after")
    def _batch_size_is_a_number(self) -> Self:
        if self.batch_size != "auto" and not (self.batch_size.isdecimal() and int(self.batch_size)):
            raise ValueError(f"batch_size={self.batch_size}: valid: auto, or a whole number of at least 1")
        return self

    @property
    def rows(self) -> int | None:
        """Of a batch; None: auto."""
        return None if self.batch_size == "auto" else int(self.batch_size)
