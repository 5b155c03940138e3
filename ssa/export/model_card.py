"""The README.md of an exported model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssa.config import Config
from ssa.files import expanded
from ssa.model.config import ModelConfig
from ssa.record.run_files import read_summary

_MEASURES = {"loss": "loss, nats per token", "perplexity": "perplexity", "bits_per_byte": "bits/byte"}
_SSA = """\
Attention uses inverse temperatures (rule `{rule}`) on: {scaled}. The rule is Selective Self-Attention (*Selective
Attention: Enhancing Transformer through Principled Context Control*,
[arXiv 2411.12892](https://arxiv.org/abs/2411.12892)) or one that it is compared with.

"""
_EQUATIONS = "Equations are in `temperature.py` and `temperature_rules.py`.\n\n"
_CODE = """\
The model's code is in this folder: loading it takes `trust_remote_code=True`, torch and transformers (4.56 or later).
Batches are padded on the left.

"""
_ADAPTED = """\
Base and temperatures are in this folder: loading both takes `trust_remote_code=True` and the package `ssa`, which wrote
it. Without them, `AutoModelForCausalLM` loads the base alone.

"""
_PROMPTS = """\
In training every text began with the end-of-text token, so prompts should too: `tokenizer.eos_token + text`.

"""
_UNFINISHED = "The run had not finished.\n\n"
_LICENSE = """\
Not specified. Check the licenses of the training data and of the base model, and state one before sharing the weights.
"""


def model_card(config: Config, run: Path, name: str, own: bool) -> str:
    """A short model card for the exported folder ``name``; ``own``: whether that contains the model's code."""
    model, base = config.model, config.init_from
    origin = f"fine-tuned from `{base}`" if base else "trained from scratch"
    about = (
        f"`{model.name}` of size `{model.size}`, {origin} on `{config.data.name}`: {config.trainer.steps:,} steps of "
        f"{config.trainer.batch_size} x {config.data.block_size} tokens, seed {config.seed}, as run\n"
        f"`{config.run_id}`.\n\n"
    )
    measured = _evaluation(read_summary(run), config) if (run / "summary.json").exists() else _UNFINISHED
    return _card(about, f"## Evaluation\n\n{measured}", _PROMPTS, model, base, name, own)


def pretrained_card(model: ModelConfig, base: str, name: str, own: bool) -> str:
    """The same for a pretrained model that was exported without a training run."""
    rule = model.temperature
    about = f"`{base}` with temperatures at the values they have there or start from" if rule.scaled else f"`{base}`"
    return _card(f"{about}; not trained further.\n\n", "", "", model, base, name, own)


def _card(about: str, evaluation: str, prompts: str, model: ModelConfig, base: str | None, name: str, own: bool) -> str:
    rule, hf = model.temperature, model.hf_config is not None
    hub = base is not None and not expanded(base).exists()
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **({"base_model": base} if hub else {}),
        **({"tags": ["selective-self-attention"]} if rule.scaled else {}),
    }
    parts = [
        "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in front.items()) + "---\n\n",
        f"# {name}\n\n",
        about,
        _SSA.format(rule=rule.name, scaled=", ".join(rule.scaled)) if rule.scaled else "",
        evaluation,
        "## Loading\n\n",
        f"```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n{loading(name, own)}\n```\n\n",
        prompts,
        (_ADAPTED if hf else _EQUATIONS + _CODE) if own else "",
        "## License\n\n",
        _LICENSE,
    ]
    return "".join(parts)


def loading_temperatures(folder: str, base: str) -> str:
    """Python that loads temperatures onto their base."""
    return (
        "import ssa\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({base!r})\n"
        f"model = ssa.load(AutoModelForCausalLM.from_pretrained({base!r}), {folder!r})"
    )


def loading(folder: str, own: bool) -> str:
    """Two lines of Python that load an exported folder."""
    trust = ", trust_remote_code=True" if own else ""
    return (
        f"tokenizer = AutoTokenizer.from_pretrained({folder!r}{trust})\n"
        f"model = AutoModelForCausalLM.from_pretrained({folder!r}{trust})"
    )


def _evaluation(summary: dict[str, Any], config: Config) -> str:
    lines = [f"| | {' | '.join(_MEASURES.values())} |", "|---" * (len(_MEASURES) + 1) + "|"]
    for split, prefix in (("validation", "best/val"), ("test", "best/test")):
        values = [summary.get(f"{prefix}/{measure}") for measure in _MEASURES]
        if None not in values:
            lines.append(f"| {split} | {' | '.join(f'{value:.4g}' for value in values)} |")
    how = f"windows of {config.data.block_size} tokens, {summary.get('precision')}"
    how += ", attention restarting at each document" if config.data.document_mask else ""
    return "\n".join(lines) + f"\n\nWeights of step {summary.get('best_step')}, the best on validation; {how}.\n\n"
