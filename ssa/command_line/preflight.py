"""Checks of files and folders before torch is imported, which takes seconds."""

from __future__ import annotations

import os
from pathlib import Path

from ssa.config import Config, DataConfig, TrainerConfig
from ssa.evaluation.settings import NAMED_TEXTS, EvaluateSettings
from ssa.files import cache_root, check_writable
from ssa.pretrained.source import describe, local_folder
from ssa.processes import launched
from ssa.record.run_model import load_run_config, with_own_tokenizer
from ssa.record.run_record import RunRecord, run_folder
from ssa.text.sources.local import find_files, split_files
from ssa.text.tokenization import local_definition, trained_entries


def check_train(config: Config) -> None:
    """Check the folder of a run and, unless the run is finished, its text files, tokenizer, cache and device.

    Raises:
        UserError: one is missing, in use or cannot be written.
    """
    if launched() and os.environ["RANK"] != "0":  # what it reads, rank 0 checks
        _check_devices(config.trainer)
        return
    with RunRecord.open(config) as record:
        if record.finished:
            return
        data = with_own_tokenizer(config.data, record.folder) if record.resume_checkpoints else config.data
    _check_inputs(config, data)


def check_job(config: Config) -> None:
    """Check what a run that was never started reads, before the other jobs of a multirun.

    Raises:
        UserError: as `check_train`.
    """
    if not config.plan.show and config.resume is None and not run_folder(config).exists():
        _check_inputs(config, config.data)


def _check_inputs(config: Config, data: DataConfig) -> None:
    if data.source == "text":
        split_files(data)
    if trained_entries(data.tokenizer) is None:
        local_definition(data.tokenizer)
    _check_device(config.trainer.device, "trainer.device")
    _check_devices(config.trainer)
    cache = cache_root(data.cache_dir)
    if not (cache.is_dir() and any(cache.iterdir())):  # a read-only cache may hold the tokens
        check_writable(cache, f"data.cache_dir={cache}")


def check_evaluate(settings: EvaluateSettings) -> None:
    """Check the model, its tokenizer, text files, and the folder for results.

    Raises:
        UserError: one is missing or cannot be written.
    """
    if settings.run is not None:
        load_run_config(settings.run)
    elif settings.init_from is not None and local_folder(settings.init_from) is not None:
        describe(settings.init_from)
    check_evaluated_inputs(settings)
    results = Path(settings.output_dir, "pretrained")
    if settings.run is None and not results.is_dir():  # a read-only folder may hold the results
        check_writable(results, f"output_dir={settings.output_dir}")


def check_evaluated_inputs(settings: EvaluateSettings) -> None:
    """Check the tokenizer, text files and device.

    Raises:
        UserError: one is not available.
    """
    if settings.tokenizer is not None:
        local_definition(settings.tokenizer, "tokenizer")
    if settings.text not in (None, *NAMED_TEXTS):
        find_files("text", settings.text, NAMED_TEXTS)
    _check_device(settings.device, "device")


def _check_devices(config: TrainerConfig) -> None:
    """Check that there are as many devices as asked for, and that they divide the batch."""
    if launched():
        from ssa.training.world import World  # imports torch

        World.from_environment().check(config)
    elif (config.devices, config.nodes) != (1, 1) or config.strategy == "fsdp":
        from ssa.device import resolve_devices

        config.micro_batches(resolve_devices(config))


def _check_device(name: str, field: str) -> None:
    if name not in ("auto", "cpu"):
        from ssa.device import resolve_device  # imports torch

        resolve_device(name, field)
