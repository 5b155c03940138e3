"""The summary of a run, and its reports on the terminal at start and end."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from rich import box
from rich.console import Console
from rich.table import Table

from ssa.config import SCALES, Config, short_id
from ssa.device import device_name, peak_memory_bytes
from ssa.errors import UserError
from ssa.model.temperature_rules import TOLERANCE
from ssa.progress import counted
from ssa.record.machine import Machine
from ssa.record.run_files import read_summary
from ssa.record.run_record import run_folder
from ssa.training.lit_module import LanguageModule
from ssa.training.optim import lr_factor
from ssa.training.prepared_run import PreparedRun

_FEW_DOCUMENTS, _FEW_TOKENS = 5, 10_000  # of a split for evaluation
_SHOWN = 10  # other runs in the final table


def summarize(run: PreparedRun, trainer: L.Trainer, module: LanguageModule, best_step: int) -> dict[str, Any]:
    """Evaluate the loaded weights, those of ``best_step``, on validation and test; the contents of summary.json."""
    config = run.config
    if best_step != module.evaluated_step:
        trainer.validate(module, run.evaluation_batches("validation"), verbose=False)
    measured = {f"best/val/{name}": value for name, value in module.evaluated.items()}
    trainer.test(module, run.evaluation_batches("test"), verbose=False)
    measured |= {f"best/test/{name}": value for name, value in module.evaluated.items()}
    splits = {"train": run.corpus.split("train"), **run.splits}
    units = ("documents", "tokens", "words", "bytes")
    return {
        "run_id": config.run_id,
        "status": "finished",
        "experiment": config.experiment,
        "scale": config.scale,
        "model": config.model.name,
        "size": config.model.size,
        "temperature": config.model.temperature.name,
        "variant": config.variant,
        "init_from": config.init_from,
        "train": config.optim.train,
        "data": config.data.name,
        "data_hash": run.corpus.fingerprint,
        "seed": config.seed,
        **{f"parameters.{kind}": number for kind, number in run.model.count_parameters().items()},
        "steps": config.trainer.steps,
        "block_size": config.data.block_size,
        "document_mask": config.data.document_mask,
        "tokens": config.trainer.steps * tokens_per_step(run),
        "best_step": best_step,
        "loss_of_text": run.corpus.loss_of_text,
        **measured,
        **{f"reference/val/{name}_perplexity": value for name, value in run.references.items()},
        **Machine.here(config.trainer)._asdict(),
        "attention_backend": run.attention_backend,
        "peak_memory_bytes": run.world.largest(peak_memory_bytes(run.device)),
        **{f"data.{name}.{unit}": getattr(split, f"n_{unit}") for name, split in splits.items() for unit in units},
    }


def tokens_per_step(run: PreparedRun) -> int:
    """Tokens in an optimizer step."""
    return run.config.trainer.batch_size * run.config.data.block_size


def print_start(console: Console, run: PreparedRun, folder: Path) -> None:
    """Print the size, tokens and device of a run, and the reference perplexities."""
    config, count = run.config, run.model.count_parameters()
    per_step, steps = tokens_per_step(run), config.trainer.steps
    share = count["temperature"] / count["total"]
    accumulate = f", {run.loader.accumulate} micro-batches" if run.loader.accumulate > 1 else ""
    epochs = steps * per_step / run.corpus.split("train").n_tokens
    corpus = "  ".join(f"{name} {run.corpus.split(name).n_tokens:,}" for name in ("train", "validation", "test"))
    noise = f", {config.data.noise:.3g} of the input tokens replaced at random" if config.data.noise else ""
    limit = config.data.max_documents
    subset = f", at most the first {counted(limit, 'documents')} (data.max_documents)" if limit else ""
    reference = ", ".join(f"{name} {value:.1f}" for name, value in run.references.items())
    trained = sum(parameter.numel() for parameter in run.model.parameters() if parameter.requires_grad)
    lines = {
        "run": str(folder),
        "scale": f"{config.scale} (others: scale={'|'.join(SCALES)}; --cfg job shows every value)",
        "model": f"{config.model.name} {config.model.size}: {count['total']:,} parameters, {count['non_embedding']:,} "
        f"without embeddings, {count['temperature']:,} in temperatures ({share:.3%})",
        "data": f"{config.data.name}{subset}, tokenizer {run.corpus.tokenizer.name}; tokens: {corpus}",
        "steps": f"{steps:,} of {per_step:,} tokens ({config.trainer.batch_size} x {config.data.block_size}"
        f"{accumulate}) = {steps * per_step:,} tokens, {epochs:.2f} epochs{noise}",
        "device": f"{device_name(run.device)}, {run.precision}, attention backend {run.attention_backend}"
        + (", compiled" if run.compiled else ""),
        **({"devices": _devices(run)} if run.world.size > 1 else {}),
        **({"from": f"{config.init_from}"} if config.init_from else {}),
        "trains": f"{trained:,} parameters (optim.train={config.optim.train})",
        "baseline": f"{reference} (validation perplexity of n-gram models on the same tokens"
        + (", without noise)" if noise else ")"),
    }
    if run.resume is not None:
        lines["resumed"] = f"at step {run.resume.step:,}"
        if run.resume.damaged:
            lines["resumed"] += f", from the newest checkpoint that serves: {run.resume.damaged}"
    for name, text in lines.items():
        console.print(f"{name:<8} {text}")
    for note in _notes(run):
        console.print(f"note     {note}")


def _devices(run: PreparedRun) -> str:
    nodes = f" on {run.world.nodes} nodes" if run.world.nodes > 1 else ""
    share = run.config.trainer.batch_size // run.world.size
    return f"{run.world.size}{nodes}, {run.strategy.name}: {run.strategy.reason}; {counted(share, 'sequences')} each"


def _notes(run: PreparedRun) -> list[str]:
    """Warnings: temperatures without effect, or that change a pretrained model from the start."""
    config, notes = run.config, []
    if run.corpus.loss_of_text:
        notes.append(run.corpus.loss_of_text)
    notes += run.corpus.notes
    if older := _before_version_2(config):
        notes.append(f"version 0.2 made this run in {older}: resume=FOLDER or data.text_version=1 resumes it")
    for name in ("validation", "test"):
        split = run.corpus.split(name)
        if split.n_documents < _FEW_DOCUMENTS or split.n_tokens < _FEW_TOKENS:
            notes.append(
                f"{name} has {counted(split.n_documents, 'documents')} and {counted(split.n_tokens, 'tokens')}: "
                f"too few to compare runs; more text, a larger data.validation_fraction or data.{name}=FILE helps"
            )
    if config.data.source == "hub" and config.data.tokenizer.startswith("bpe-"):
        notes.append(
            f"tokenizer {config.data.tokenizer} is trained on the training split: at this size of model GPT-2's 50,257 "
            "tokens would take most of the time (data.tokenizer=gpt2); word perplexity and bits/byte compare the two"
        )
    optim, steps, rule = config.optim, config.trainer.steps, config.model.temperature.name
    # Roughly the distance that AdamW can move a temperature parameter: one learning rate per step.
    shift = optim.lr * optim.temperature_lr_multiplier * sum(lr_factor(step, optim, steps) for step in range(steps))
    if config.init_from and config.data.tokenizer != config.init_from:
        notes.append(
            f"data.tokenizer={config.data.tokenizer} is not the tokenizer of {config.init_from}: token ids may differ"
        )
    if run.model.unmeasured is not None:
        notes.append(f"entropy and spikiness of attention are not measured: {run.model.unmeasured}")
    if optim.train == "temperature" and not config.init_from:
        notes.append("optim.train=temperature keeps the random initial weights; it is meant for init_from=")
    for name, temperature in run.model.first_temperatures().items():
        if config.init_from and not temperature.starts_at_identity:
            notes.append(f"the {name} temperature ({rule}) does not start at 1: step 0 is not the pretrained model")
        reach = temperature.largest_position_term(shift, config.data.block_size)
        if reach is not None and reach < TOLERANCE:
            notes.append(
                f"the {name} temperature ({rule}): in these steps its position term moves at most {reach:.1g} from 1; "
                "more steps, optim.temperature_lr_multiplier or model.temperature.alpha_init change that"
            )
    return notes


def _before_version_2(config: Config) -> Path | None:
    """The folder of this run from before ``data.text_version=2``, if it is there."""
    if config.data.text_version == 1:
        return None
    data = config.data.model_copy(update={"text_version": 1})
    folder = run_folder(config.model_copy(update={"data": data}))
    return folder if folder.exists() else None


def print_end(console: Console, summary: dict[str, Any], folder: Path) -> None:
    """Print a table with this run and comparable ones, then the run folder."""
    columns = ("", "loss", "perplexity", "bits/byte", "entropy", "spikiness", "tokens/s")
    table = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_row("validation", *_cells(summary, "best/val"))
    table.add_row("test", *_cells(summary, "best/test"))
    for other in _comparable(console, summary, folder):
        variant = other.get("variant", other["temperature"])
        name = f"{other['model']} {variant} s{other['seed']} {short_id(other['run_id'])}"
        table.add_row(name, *_cells(other, "best/val"))
    console.print(table)
    counts = (f"{summary[f'data.validation.{unit}']:,} {unit}" for unit in ("tokens", "words", "bytes"))
    memory = f"peak memory {summary['peak_memory_bytes'] / 1e9:.2f} GB"
    step = summary["best_step"]
    console.print(f"validation: {', '.join(counts)}; entropy in nats; weights of step {step}; {memory}")
    if loss := summary.get("loss_of_text"):
        console.print(f"{loss} (–)", markup=False)
    reference = ", ".join(f"{name} {summary[f'reference/val/{name}_perplexity']:.1f}" for name in ("unigram", "bigram"))
    console.print(
        f"{summary['model']}: validation perplexity {summary['best/val/perplexity']:.2f} "
        f"({reference} on the same tokens), attention entropy {summary['best/val/attention_entropy']:.3f} nats"
    )
    console.print(str(folder.resolve()))


def _cells(summary: dict[str, Any], split: str) -> list[str]:
    names = ("loss", "perplexity", "bits_per_byte", "attention_entropy", "attention_spikiness")
    values = [summary.get(f"{split}/{name}") for name in names]
    speed = f"{summary['tokens_per_second']:,.0f}" if split == "best/val" else ""
    nothing = {"bits_per_byte": "–"}  # the tokenizer loses text
    shown = (
        nothing.get(name, "") if value is None else f"{value:.4g}" for name, value in zip(names, values, strict=True)
    )
    return [*shown, speed]


def _comparable(console: Console, summary: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Summaries of the newest runs in the same folder with the same data, number of tokens and model size."""
    text = ("data_hash", "tokens", "block_size", "document_mask", "data.validation.tokens")
    same = (*text, "size", "scale", "init_from", "train")
    others, written = [], {}
    for path in folder.resolve().parent.glob("*/summary.json"):
        with suppress(FileNotFoundError):  # another process starts that run over
            written[path] = path.stat().st_mtime
    for path in sorted(written, key=written.__getitem__):
        if ".replaced-" not in path.parent.name:
            try:
                others.append(read_summary(path.parent, complete=True))
            except UserError as error:
                console.print(f"note     {error}: left out of this table")
    alike = [other for other in others if all(other.get(key) == summary.get(key) for key in same)]
    return [other for other in alike if other["run_id"] != summary["run_id"]][-_SHOWN:]
