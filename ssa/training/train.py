"""One run from config to summary: data, model, Lightning trainer, evaluation, record."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning as L
import psutil
import torch
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from rich.console import Console

from ssa import paths
from ssa.config import Config, PlanConfig
from ssa.device import (
    attention_backend,
    device_name,
    is_out_of_memory,
    reset_peak_memory,
    resolve_compile,
    resolve_device,
    resolve_precision,
)
from ssa.errors import EXIT_INTERRUPTED, NotFinite, UserError
from ssa.files import disk_errors, write_atomic
from ssa.model.config import ModelConfig
from ssa.model.language_model import LanguageModel
from ssa.model.transformer import Transformer
from ssa.planning.disk import FLOAT
from ssa.planning.flops import training_flops
from ssa.planning.parameters import count_parameters
from ssa.planning.strategy import Strategy, choose_strategy
from ssa.pretrained.load import check_vocabulary, load_pretrained, without_weights
from ssa.pretrained.source import weight_files
from ssa.record import checksums, environment, wandb_mirror
from ssa.record.checkpoint import base_hash, read_best
from ssa.record.inputs import check_inputs, recorded_inputs
from ssa.record.machine import Machine
from ssa.record.replica import ReplicaRecord
from ssa.record.resume_point import ResumePoint, restore_best, resume_point
from ssa.record.run_files import Row, read_summary
from ssa.record.run_model import with_own_tokenizer
from ssa.record.run_record import RunRecord
from ssa.record.wandb_mirror import WandbMirror
from ssa.redaction import redacted
from ssa.text.ngram import reference_perplexities
from ssa.text.token_blocks import TrainingBatches
from ssa.text.token_cache import TokenizedCorpus, prepare
from ssa.training.callbacks import (
    CheckpointFile,
    Checkpoints,
    Interrupted,
    Interruption,
    TrainingProgress,
    TrainingRows,
)
from ssa.training.inputs import read_inputs
from ssa.training.lit_module import LanguageModule
from ssa.training.optim import freeze
from ssa.training.prepared_run import PreparedRun, TrainingLoader
from ssa.training.strategies import build, place
from ssa.training.summary import print_end, print_start, summarize
from ssa.training.world import World


def train(config: Config, command: Sequence[str] = ()) -> dict[str, Any]:
    """Run or resume the run of a config; a finished run is only reported.

    Args:
        config: the run.
        command: the command line, program first, for environment.json.

    Returns:
        The contents of summary.json, without checksums.

    Raises:
        UserError: the data, the device, its memory, the run folder or a checkpoint does not fit the config, the loss is
            not finite, or the disk is full.
        SystemExit: 130 after SIGINT, SIGTERM or SIGHUP; the run can be resumed.
    """
    began, world = time.perf_counter(), World.from_environment()
    console = Console(highlight=False, soft_wrap=True, quiet=not world.is_zero)
    Record = RunRecord if world.is_zero else ReplicaRecord
    with world.joined(config.trainer) as failing_as_one, Record.open(config) as record, failing_as_one(), disk_errors():
        if world.broadcast(record.finished if world.is_zero else False):
            summary = _reported(config, record, console) if world.is_zero else {}
        else:
            summary = _trained(config, record, world, command, console, began)
        if world.is_zero:
            print_end(console, summary, record.folder)
    return summary


def _reported(config: Config, record: RunRecord, console: Console) -> dict[str, Any]:
    """The summary of a finished run."""
    checksums.verify_summary(record.folder)
    record.tidy()
    inputs = read_inputs(config.data, config.init_from)
    check_inputs(record.folder, config.init_from, inputs)
    console.print("This run finished before (rerun=true runs it again).")
    for setting, files in recorded_inputs(record.folder, config.init_from).items():
        if setting not in inputs:
            console.print(f"{setting}: {', '.join(files)}: not available, so not compared", markup=False)
    recorded = read_summary(record.folder, complete=True)
    summary = {key: value for key, value in recorded.items() if key not in checksums.KEYS}
    wandb_mirror.mirror_finished(config, record, summary)
    return summary


def _trained(
    config: Config, record: RunRecord, world: World, command: Sequence[str], console: Console, began: float
) -> dict[str, Any]:
    """The summary of a run, which is trained here, from the start or from a checkpoint."""
    if world.is_zero:
        wandb_mirror.check(config.logger)
    try:
        return _execute(_prepare(config, record, world), record, command, console, began)
    except NotFinite:  # before the first update
        record.discard()
        raise
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        size, device = config.trainer.micro_batch_size, device_name(resolve_device(config.trainer.device))
        message = f"trainer.micro_batch_size={size}: out of memory on {device}; try a smaller one, or a smaller model"
        raise UserError(message) from None


def _prepare(config: Config, record: RunRecord, world: World) -> PreparedRun:
    device = resolve_device(config.trainer.device)
    found = resume_point(record.resume_checkpoints, record.best_checkpoint, config) if world.is_zero else None
    resume = world.broadcast(found)
    resuming = resume is not None
    if resuming:
        check_inputs(record.folder, config.init_from, read_inputs(config.data, config.init_from))
    elif config.init_from:
        weight_files(config.init_from)  # before text is tokenized for a missing model
    length, masked = config.data.block_size, config.data.document_mask
    backend = attention_backend(config.model, config.trainer, length, device, masked)
    with world.zero_first():
        corpus = prepare(with_own_tokenizer(config.data, record.folder) if resuming else config.data)
    corpus.check_block_size(config.data.block_size)
    splits = {name: corpus.split(name).prefix(config.data.max_eval_tokens) for name in ("validation", "test")}
    train_split = corpus.split("train")
    batches = TrainingBatches(train_split, length, config.trainer.batch_size, config.seed, config.data.noise)
    vocab_size = corpus.tokenizer.vocab_size
    model, strategy = _model(config, corpus, resume, world, device)
    references = {}
    if world.is_zero:  # who prints them
        references = reference_perplexities(train_split.tokens, splits["validation"].tokens, vocab_size)
    if masked:
        model.check_document_mask()
    return PreparedRun(
        config=config,
        device=device,
        precision=resolve_precision(config.trainer.precision, device),
        attention_backend=backend,
        compiled=resolve_compile(config.trainer.compile, device, _flops(config, model.vocab_size)),
        corpus=corpus,
        splits=splits,
        model=model,
        world=world,
        strategy=strategy,
        loader=TrainingLoader(batches, config.trainer, world, device.type == "cuda"),
        references=references,
        inputs=read_inputs(config.data, config.init_from),
        resume=resume,
    )


def _model(
    config: Config, corpus: TokenizedCorpus, resume: ResumePoint | None, world: World, device: torch.device
) -> tuple[LanguageModel, Strategy]:
    """The model with its initial weights, new or pretrained, and how it is divided."""
    check_vocabulary(config.model, corpus.tokenizer)
    vocab_size = config.model.vocab_size or corpus.tokenizer.vocab_size
    here = config.model_copy(update={"plan": PlanConfig()})
    strategy = world.broadcast(choose_strategy(here, vocab_size) if world.is_zero else Strategy("auto", ""))
    allocate = partial(place, world=world, device=device) if strategy.name == "fsdp" else None
    model: LanguageModel
    if config.init_from and not (resume and resume.has_base):
        model = load_pretrained(config.model, config.init_from, config.seed, allocate)
    elif config.model.hf_config is not None:
        model = without_weights(config.model, vocab_size)
    else:
        if allocate is None:
            _check_memory(config.model, vocab_size)
        if allocate:
            with torch.device("meta"):
                model = own = Transformer(config.model, vocab_size, seed=None)
            allocate(own)
            own.reset_parameters(config.seed)
        else:
            model = Transformer(config.model, vocab_size, config.seed)
    # An export contains the frequencies of its run.
    if (frequencies := model.frequencies()) is not None and not frequencies.any():
        counts = corpus.split("train").token_counts(model.vocab_size)
        model.set_token_counts(torch.from_numpy(counts))
    freeze(model, config.optim)
    model.checkpoint_activations = config.trainer.checkpoint_activations
    return model, strategy


def _flops(config: Config, vocab_size: int) -> float:
    """Of the whole training; 0 where they are not known, of a model of transformers."""
    if config.model.hf_config is not None:
        return 0.0
    return training_flops(config, count_parameters(config.model, vocab_size, config.optim.train != "all")).total


def _check_memory(model: ModelConfig, vocab_size: int) -> None:
    """Refuse a model whose weights alone exceed the machine's memory, before any is taken."""
    needed, memory = FLOAT * count_parameters(model, vocab_size).total, psutil.virtual_memory().total
    if needed > memory:
        raise UserError(
            f"model: n_layer={model.n_layer}, d_model={model.d_model}, vocab_size={vocab_size}, "
            f"max_positions={model.max_positions}: the weights need {needed / 1e9:,.0f} GB in float32; "
            f"this machine has {memory / 1e9:,.0f} GB"
        )


def _execute(
    run: PreparedRun, record: RunRecord, command: Sequence[str], console: Console, began: float
) -> dict[str, Any]:
    config, resume, world = run.config, run.resume, run.world
    several: dict[str, Any] = {"devices": world.size, "nodes": world.nodes, "strategy": run.strategy.name}
    facts = environment.describe(
        command,
        diff=config.save_diff,
        **{name: fact for name, fact in Machine.here(config.trainer)._asdict().items() if name != "cpu"},
        attention_backend=run.attention_backend,
        compiled=run.compiled,
        **(several if world.size > 1 else {}),
    )
    run.model.flex_attention = run.attention_backend == "flex"
    if run.compiled or run.model.flex_attention:
        torch._dynamo.reset()  # the recompilation limit counts earlier jobs in this process
    if run.compiled:
        for block in run.model.layers():  # one compilation serves all of them
            block.compile()
    reset_peak_memory(run.device)
    if resume and resume.has_best and world.is_zero:
        restore_best(resume, record.best_checkpoint)
    step, checkpoint, n_rows = (resume.step, resume.path, resume.rows) if resume else (None, None, None)
    data_hash = run.corpus.fingerprint
    record.begin(facts, step=step, checkpoint=checkpoint, n_rows=n_rows, data_hash=data_hash, inputs=run.inputs)
    if world.is_zero:
        write_atomic(record.folder / "tokenizer.json", run.corpus.tokenizer.definition)
        print_start(console, run, record.folder)
    world.barrier()  # for what rank 0 has written
    # Elsewhere it is a mirror that was not started.
    opened = WandbMirror.open(config, record) if world.is_zero else WandbMirror(config, record.folder)
    with opened as mirror, _quiet_lightning():

        def log_row(row: Row) -> None:
            record.log(row)
            mirror.log(row)
            module.n_rows += 1

        base, sharded = base_hash(config, run.inputs), run.strategy.name == "fsdp"
        module = LanguageModule(config, run.model, run.splits, log_row, run.compiled, base, world, sharded)
        module.n_rows = len(record.rows())
        module.last_checkpoint = str(record.last_checkpoint) if resume else "none"
        interruption, rows = Interruption(), TrainingRows(config.trainer)
        module.stop_requested = lambda: interruption.requested
        checkpoints = Checkpoints(record.last_checkpoint, record.best_checkpoint, config.trainer)
        storage = CheckpointFile(record.previous_checkpoint)
        trainer = _trainer(
            run, storage, [interruption, rows, checkpoints, TrainingProgress(console, config.trainer, rows)]
        )
        validation = run.evaluation_batches("validation")
        try:
            with interruption.watch():
                if config.init_from and not resume:
                    with module.before_training():
                        trainer.validate(module, validation, verbose=False)
                newest = record.last_checkpoint if resume else None
                trainer.fit(module, run.loader, validation, ckpt_path=newest, weights_only=True)
                world.barrier()  # for the best weights
                best = read_best(record.best_checkpoint, config, run.model.state_dict())
                best.load_into(run.model)
                summary = summarize(run, trainer, module, best.step)
        except Interrupted:
            record.step = trainer.global_step
            record.set_status("interrupted")
            again = f"{paths.command('train.py')} resume={record.folder}"
            saved = "saved" if record.last_checkpoint.exists() else "nothing to save yet"
            console.print(f"Interrupted at step {trainer.global_step}, {saved}.  To resume: {again}")
            interruption.requeue()
            raise SystemExit(EXIT_INTERRUPTED) from None
        finally:
            record.step = trainer.global_step
        summary |= {
            "tokens_per_second": summary["tokens"] / rows.seconds,
            "train_seconds": rows.seconds,  # of all attempts
            "wall_seconds": time.perf_counter() - began,  # of this one
            **_step_0(record),
            "commit": (facts.facts["git"] or {}).get("commit"),
        }
        summary = dict(redacted(summary))
        mirror.summary(summary)
        record.finish(summary, step=config.trainer.steps)
    return summary


def _step_0(record: RunRecord) -> dict[str, Any]:
    """Validation metrics of step 0, which pretrained models have."""
    names = ("val/loss", "val/perplexity", "val/word_perplexity", "val/bits_per_byte")
    first = next((row for row in record.rows() if row["step"] == 0), {})
    return {f"step_0/{name}": first[name] for name in names if name in first}


def _trainer(run: PreparedRun, storage: CheckpointFile, callbacks: list[L.Callback]) -> L.Trainer:
    settings, accumulate = run.config.trainer, run.loader.accumulate
    environment = [TorchElasticEnvironment()] if run.world.size > 1 else []
    return L.Trainer(
        accelerator={"cuda": "gpu"}.get(run.device.type, run.device.type),
        devices=run.world.local_size,
        num_nodes=run.world.nodes,
        strategy=build(
            run.strategy.name, run.world, run.device, storage.previous, run.config.model.hf_config is not None
        ),
        precision=run.precision,
        max_steps=settings.steps,
        accumulate_grad_batches=accumulate,
        val_check_interval=settings.eval_every * accumulate,  # counted in micro-batches
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        plugins=[storage, *environment],
        use_distributed_sampler=False,
        inference_mode=False,  # avoids a second compilation
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's remarks on hardware, loaders and limits, which are chosen here."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(level)
