"""The typed config of one run.

Hydra composes YAML from ``conf/``, and `parse` turns the result into frozen models; no other code sees OmegaConf.
Unknown keys, wrong types and values out of range are refused here, before torch is imported, each in one line with
the field, the value and what is valid.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass, replace
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ssa.config_errors import REMOVED, RENAMED, one_line
from ssa.errors import UserError
from ssa.files import hash_of
from ssa.model.config import TOO_LARGE, ModelConfig, check_divides
from ssa.redaction import redacted
from ssa.rule_names import check_terms, variant

PositiveInt = Annotated[int, Field(gt=0, lt=TOO_LARGE)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=TOO_LARGE)]
Scale = Literal["smoke", "laptop", "overnight", "gpu", "paper"]  # the files in conf/scale, the smallest first
SCALES: tuple[Scale, ...] = get_args(Scale)
Detail = Literal["run", "layer", "head"]  # of metrics, the coarsest first
Gpu = Literal["a10", "a100-40gb", "a100", "l4", "l40s", "rtx3090", "rtx4090", "h100", "h200", "b200"]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
T = TypeVar("T")

BOOKKEEPING = (  # settings that change no number of a run
    *("logger", "output_dir", "resume", "rerun", "save_diff", "experiment", "scale"),
    *("data.cache_dir", "data.workers", "trainer.log_every", "trainer.checkpoint_every", "trainer.keep_last"),
    *("trainer.devices", "trainer.nodes", "trainer.strategy", "trainer.checkpoint_activations"),
)
_SIZE = re.compile(r"(?P<number>\d+(\.\d+)?) ?(?P<unit>[KMGT])(?P<binary>i?)B", re.IGNORECASE | re.ASCII)
_LONGEST_VARIANT = 40  # characters, in the names of folders
NAMES = ("model.name", "model.size", "model.temperature.name", "data.name")  # of options, whose values count


def _nested(names: Iterable[str]) -> dict[str, Any]:
    """Dotted names as nested dictionaries, with True for each, as pydantic excludes fields."""
    found: dict[str, Any] = {}
    for name in names:
        *sections, last = name.split(".")
        functools.reduce(lambda inner, section: inner.setdefault(section, {}), sections, found)[last] = True
    return found


_NOT_IDENTITY = _nested((*BOOKKEEPING, *NAMES, "init_hash"))  # the hash stands in for init_from


class Section(BaseModel):
    """Frozen settings, strict about types, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PasskeyConfig(Section):
    """Passkey texts: number of filler sentences; with ``max_sentences`` null, as many as fit a block."""

    min_sentences: NonNegativeInt
    max_sentences: NonNegativeInt | None

    @model_validator(mode="after")
    def _some_number_fits(self) -> Self:
        if self.max_sentences is not None and self.max_sentences < self.min_sentences:
            raise ValueError(
                f"data.passkey.max_sentences={self.max_sentences}: "
                f"valid: at least data.passkey.min_sentences={self.min_sentences}"
            )
        return self


class DataConfig(Section):
    """Text source, tokenizer and blocks of ``block_size`` tokens.

    ``noise``: share of the input tokens that are replaced at random.  ``text_version``: 1 reads and divides local text
    as before version 0.3, for runs made then.  ``passkey``: for the passkey source only.
    """

    name: Name
    source: Literal["pydocs", "pysource", "hub", "text", "passkey"]
    path: str | None
    config: str | None
    revision: str | None
    text_column: str
    train: str | None
    validation: str | None
    test: str | None
    validation_fraction: Annotated[float, Field(ge=1e-9, le=0.2)]
    max_documents: PositiveInt | None
    tokenizer: Annotated[str, Field(min_length=1)]
    block_size: PositiveInt
    document_mask: bool
    max_eval_tokens: PositiveInt
    cache_dir: str | None
    workers: PositiveInt
    noise: Fraction = 0.0
    text_version: Literal[1, 2] = 1  # older config.yaml files lack it
    passkey: PasskeyConfig | None = None

    @model_validator(mode="after")
    def _source_has_its_fields(self) -> Self:
        needs = {"hub": "path", "text": "train"}.get(self.source)
        if needs and not getattr(self, needs):
            example = {"path": "data.path=ORG/NAME", "train": "data.train='books/*.txt'"}[needs]
            raise ValueError(f"data.{needs} is not set; data={self.name} needs it: {example}")
        for source, fields in {"hub": ("path", "config", "revision"), "text": ("train", "validation", "test")}.items():
            ignored = next((field for field in fields if source != self.source and getattr(self, field)), None)
            if ignored:
                value = getattr(self, ignored)
                raise ValueError(f"data.{ignored}={value}: data={self.name} does not read it; valid with data={source}")
        if self.text_version != 1 and self.source != "text":
            raise ValueError(f"data.text_version={self.text_version}: valid with data=text only")
        if (self.source == "passkey") != (self.passkey is not None):
            raise ValueError(f"data.passkey: valid with data=passkey only; data.source={self.source}")
        return self


class OptimConfig(Section):
    """AdamW and its learning-rate schedule.  Steps are optimizer steps.

    ``train``: all weights, or the temperatures alone, the rest frozen.
    """

    name: Literal["adamw"]
    train: Literal["all", "temperature"]
    lr: PositiveFloat
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)]
    schedule: Literal["cosine", "wsd", "constant"]
    warmup_steps: NonNegativeInt
    decay_fraction: Annotated[float, Field(gt=0, le=1)]
    beta1: Fraction
    beta2: Fraction
    eps: PositiveFloat
    weight_decay: NonNegativeFloat
    grad_clip: PositiveFloat | None
    temperature_lr_multiplier: PositiveFloat


class TrainerConfig(Section):
    """Length of training, batch sizes, precision and intervals, which are in optimizer steps.

    ``keep_last``: whether a finished run keeps its last checkpoint, beside the best weights.
    """

    steps: PositiveInt
    batch_size: PositiveInt
    micro_batch_size: PositiveInt
    log_every: PositiveInt
    eval_every: PositiveInt
    checkpoint_every: PositiveInt
    probe_sequences: PositiveInt
    precision: Literal["auto", "bf16-mixed", "32-true"]
    device: Literal["auto", "cuda", "mps", "cpu"]
    attention_backend: Literal["auto", "flash", "efficient", "cudnn", "math"]
    compile: Literal[True, False, "auto"]
    keep_last: bool = False  # older config.yaml files lack it, and the next
    devices: PositiveInt | Literal["auto"] = 1
    nodes: PositiveInt = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    checkpoint_activations: bool = False

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> Self:
        check_divides("trainer.micro_batch_size", self.micro_batch_size, "trainer.batch_size", self.batch_size)
        return self

    def micro_batches(self, devices: int = 1) -> tuple[int, int]:
        """Sequences at once on each of some devices, and the number of such micro-batches in its share of a batch.

        Raises:
            UserError: the batch cannot be divided among them.
        """
        share, rest = divmod(self.batch_size, devices)
        if rest:
            raise UserError(
                f"trainer.batch_size={self.batch_size}: cannot be divided among {devices} devices; "
                f"valid: multiples of {devices}"
            )
        size = min(self.micro_batch_size, share)
        try:
            check_divides("trainer.micro_batch_size", size, f"trainer.batch_size/{devices} devices", share)
        except ValueError as error:
            raise UserError(str(error)) from None
        return size, share // size


class LoggerConfig(Section):
    """Logger of metrics besides metrics.jsonl.

    ``detail``: the finest metrics that are sent: of the run, of its layers, or of its heads.
    """

    name: Literal["wandb", "none"]
    mode: Literal["auto", "online", "offline"]
    project: Name
    entity: str | None
    tags: list[str]
    timeout_seconds: PositiveFloat
    detail: Detail = "layer"  # older config.yaml files lack it


class PlanConfig(Section):
    """The plan of a run, printed in place of the run, and the device that it is for.

    ``memory``: of a device, such as 80GB; ``tflops``: its peak; ``mfu``: the share of the peak that training reaches.
    """

    show: bool = False
    device: Gpu | None = None
    memory: str | None = None
    tflops: PositiveFloat | None = None
    mfu: Annotated[float, Field(gt=0, le=1)] = 0.4

    @model_validator(mode="after")
    def _memory_is_a_size(self) -> Self:
        if self.memory is not None and not _SIZE.fullmatch(self.memory.strip()):
            raise ValueError(f"plan.memory={self.memory}: valid: a size such as 80GB, 79.6GiB or 512MB")
        return self

    @property
    def memory_bytes(self) -> int | None:
        """``memory`` in bytes; None: not given."""
        if self.memory is None:
            return None
        found = _SIZE.fullmatch(self.memory.strip())
        assert found, "checked when the config is made"
        return int(float(found["number"]) * (1024 if found["binary"] else 1000) ** " KMGT".index(found["unit"].upper()))


class Config(Section):
    """The config of one run.

    ``plan`` is of the command, not of the run: it is neither recorded nor part of the run id.
    ``init_hash``: content of the folder that ``init_from`` names, set by the program; null for a Hub id.
    """

    model: ModelConfig
    data: DataConfig
    optim: OptimConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    scale: Name
    experiment: Name
    seed: NonNegativeInt
    init_from: Annotated[str, Field(min_length=1)] | None
    output_dir: Annotated[str, Field(min_length=1)]
    resume: str | None
    rerun: bool
    save_diff: bool = False  # older config.yaml files lack it, and the next
    init_hash: str | None = None
    plan: PlanConfig = Field(default=PlanConfig(), exclude=True)

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        if self.data.block_size > self.model.max_positions:
            raise ValueError(
                f"data.block_size={self.data.block_size}: over the model's positions; "
                f"valid: up to model.max_positions={self.model.max_positions}"
            )
        check_terms(self.model.temperature)
        if self.model.hf_config is not None:
            self._fits_transformers()
        if self.optim.train == "temperature" and not self.model.temperature.scaled:
            raise ValueError(
                f"optim.train=temperature: model.temperature={self.model.temperature.name} has no temperatures; "
                "choose a rule, model/temperature=ssa"
            )
        if self.optim.warmup_steps >= self.trainer.steps:
            raise ValueError(
                f"optim.warmup_steps={self.optim.warmup_steps}: warm-up would not end in training; "
                f"valid: below trainer.steps={self.trainer.steps}, such as optim.warmup_steps=0"
            )
        return self

    def _fits_transformers(self) -> None:
        """Refuse what `ssa.adapter.hf_model.HFModel` does not do."""
        refused = {
            "plan.show=true": self.plan.show,
            "trainer.strategy=fsdp": self.trainer.strategy == "fsdp",
        }
        for setting, chosen in refused.items():
            if chosen:
                raise ValueError(f"{setting}: not with model=hf; valid with this project's own transformer")

    def plain(self) -> dict[str, Any]:
        """The config as nested plain values."""
        return self._dumped()

    def _dumped(self, **options: Any) -> dict[str, Any]:
        values = self.model_dump(mode="json", **options)
        for field in self.model.unused_fields & values["model"].keys():
            del values["model"][field]
        return values

    def recorded(self) -> dict[str, Any]:
        """The config without secrets, as it is written to YAML, checkpoints and W&B.

        Raises:
            UserError: a secret is in a value that names a folder or a project.
        """
        values: dict[str, Any] = redacted(self.plain())
        try:
            parse(values)
        except UserError as error:
            field = str(error).partition("=")[0]
            raise UserError(f"{field}: looks like a key or a token, and would be the name of files") from None
        return values

    def identity(self) -> dict[str, Any]:
        """The fields that determine the results, without secrets: runs of equal identity have equal losses.

        Not part of it: output paths, logging, the number of processes, and the names of options (their values count).
        A pretrained model in a folder counts by its content, not its path.  Part of it: the device, although it changes
        the last bits at most, and ``trainer.eval_every``, which determines the steps at which the best checkpoint can
        be taken.
        """
        plain = self._dumped(exclude=_NOT_IDENTITY)
        if self.init_hash is not None:
            if self.data.tokenizer == self.init_from:
                plain["data"]["tokenizer"] = self.init_hash
            plain["init_from"] = self.init_hash
        for setting in self.model.temperature.unused_settings:
            del plain["model"]["temperature"][setting]
        if self.data.passkey is None:
            del plain["data"]["passkey"]
        if not self.data.noise:  # ids from before there was noise
            del plain["data"]["noise"]
        if self.data.text_version == 1:  # ids of version 0.2
            del plain["data"]["text_version"]
        if self.model.dropout:  # once a function of the micro-batch: other numbers, other ids
            plain["dropout_masks"] = "sample"
        return dict(redacted(plain))

    @property
    def tokens(self) -> int:
        """Number of training tokens, over all epochs."""
        return self.trainer.steps * self.trainer.batch_size * self.data.block_size

    @property
    def variant(self) -> str:
        """What the temperatures scale, such as ``vanilla``, ``ssa`` or ``ssa-query``; see `ssa.rule_names.variant`."""
        return variant(self.model.temperature)

    @property
    def names(self) -> tuple[str, str, str, str]:
        """Of backbone, size, variant and data."""
        return self.model.name.removeprefix("ssa_"), self.model.size, self.variant[:_LONGEST_VARIANT], self.data.name

    @property
    def short_id(self) -> str:
        """A hash of `identity`: the last part of `run_id`."""
        return hash_of(self.identity())[:10]

    @property
    def run_id(self) -> str:
        """`names`, the seed, and `short_id`."""
        return "-".join((*self.names, f"s{self.seed}", self.short_id))


def defaults(section: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """The values, by dotted key, that older config.yaml files lack."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        if field.exclude:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= defaults(field.annotation, f"{prefix}{name}.")
        elif not field.is_required() and field.default is not None:
            found[f"{prefix}{name}"] = field.default
    return found


def short_id(run_id: str) -> str:
    """The part of a run id that tells the run from all others; ids had other names before version 0.3."""
    return run_id.rpartition("-")[2]


def parse(values: Mapping[str, Any]) -> Config:
    """Plain nested values, as composed by Hydra or read from a run folder -> `Config`.

    Raises:
        UserError: an unknown key, a missing one, a wrong type or a value out of range.
    """
    config = validated(Config, values)
    temperature = config.model.temperature.starting(pretrained=config.init_from is not None)
    return config.model_copy(update={"model": replace(config.model, temperature=temperature)})


def _jsonable(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def upgraded(values: Any, path: str = "") -> Any:
    """A recorded config of version 0.1, or its section at ``path``, with today's keys; other values unchanged."""
    if not isinstance(values, Mapping):
        return values
    return {
        RENAMED.get(path + str(key), f"{path}{key}").rpartition(".")[2]: upgraded(value, f"{path}{key}.")
        for key, value in values.items()
        if f"{path}{key}" not in REMOVED
    }


def validated(kind: type[T], values: Mapping[str, Any]) -> T:
    """Plain nested values -> a `Section`, or a dataclass of `ssa.model.config`.

    Raises:
        UserError: the first error, in one line.
    """
    try:
        # As JSON: from Python values, strict validation accepts no mapping for a dataclass.
        return TypeAdapter(kind).validate_json(json.dumps(values, default=_jsonable))
    except ValidationError as error:
        raise UserError(one_line(error, kind)) from None
