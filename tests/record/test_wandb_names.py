"""Keys at W&B: in sections, by level of detail, with no two names on one key; the group and tags of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from ssa.config import Config, Detail
from ssa.model.attention_stats import attention_metrics, attention_statistics
from ssa.model.transformer import Transformer
from ssa.record.wandb_names import OF_ROWS, at_wandb, of_run

LAYERS, HEADS = 30, 9
REACH = {"temperature_position": 1.5, "temperature_token": 0.5}
ROW = {"step": 1, "tokens": 8, "train/loss": 2.0}


@pytest.fixture(scope="module")
def row() -> dict[str, float]:
    """An evaluation of a model of the shape of SmolLM2-135M, but narrow."""
    from ssa.model.config import ModelConfig, TemperatureConfig, Terms

    both = Terms(token="shared", position="log")
    temperature = TemperatureConfig(name="ssa", query=both, value=both)
    shape = {"n_layer": LAYERS, "n_head": HEADS, "n_kv_head": 3, "d_model": 36, "max_positions": 16}
    model = Transformer(ModelConfig(name="narrow", size="narrow", **shape, temperature=temperature), 11, seed=0)
    metrics = attention_metrics(attention_statistics(model.eval(), torch.arange(8)[None]))
    return {f"val/{name}": value for name, value in {"loss": 2.5, **metrics, **REACH}.items()}


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        ("run", {"val": 1, "attention": 3, "temperature": 4}),
        ("layer", {"val": 1, "attention": 3 + 4 * LAYERS, "temperature": 4 + 8 * LAYERS}),
        ("head", {"val": 1, "attention": 3 + 4 * LAYERS + 3 * LAYERS * HEADS, "temperature": 4 + LAYERS * (8 + 9 + 3)}),
    ],
)
def test_keys_by_section(row: dict[str, float], detail: Detail, expected: dict[str, int]) -> None:
    keys = at_wandb(row, detail)
    assert Counter(key.partition("/")[0] for key in keys) == expected
    assert all(key.startswith(OF_ROWS) for key in keys)
    assert len(at_wandb(row, "head")) == len(row) + 2, "no two names have one key; the means of two projections"
    assert at_wandb(ROW, detail) == ROW


def test_values_keep_their_meaning(row: dict[str, float]) -> None:
    keys = at_wandb(row, "head")
    assert keys["val/loss"] == 2.5
    assert keys["attention/entropy"] == row["val/attention_entropy"]
    assert keys["attention/max_logit/layer_07"] == row["val/attention_max_logit/layer_07"]
    assert keys["attention/entropy/layer_07/head_02"] == row["val/attention_entropy/layer_07/head_02"]
    assert keys["temperature/value/layer_29/head_02"] == row["val/temperature/value/layer_29/head_02"]
    assert (keys["temperature/position"], keys["temperature/token"]) == (1.5, 0.5)
    layers = [row[f"val/temperature/query/layer_{layer:02d}/mean"] for layer in range(LAYERS)]
    assert keys["temperature/query"] == pytest.approx(sum(layers) / LAYERS)


def test_a_group_has_all_seeds_and_no_other_setting(smoke: Callable[..., Config]) -> None:
    first = of_run(smoke("seed=0"))
    assert of_run(smoke("seed=1")) == first
    assert of_run(smoke("seed=1", "logger.mode=offline", "experiment=other"))["group"] == first["group"]
    for other in ("optim.lr=0.5", "model=gpt2", "model/size=micro", "data.block_size=32"):
        assert of_run(smoke("seed=0", other))["group"] != first["group"]
    assert first["group"].startswith("gpt2-nano-ssa-text-")
    assert first["tags"] == ["ssa", "gpt2", "nano", "smoke", "text"]
    long = of_run(smoke(f"logger.tags=[ssa,{'x' * 99}]"))["tags"]
    assert long == [*first["tags"], 64 * "x"], "the longest that W&B takes"
