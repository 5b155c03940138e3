"""Attention report: compared with materialized maps and matrices and with the validation log."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pretrained_folders import BOTH, SSA, VOCAB, ids, small, write_model
from tiny_runs import TINY

from ssa.config import Config
from ssa.errors import UserError
from ssa.evaluation.attention.measure import Batch, Measured, correlation, measure, slope
from ssa.evaluation.attention.report import Attention, summary_of
from ssa.evaluation.attention.tables import Tables, extremes, tables_of
from ssa.evaluation.evaluate import evaluate
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.settings import EvaluateSettings
from ssa.model.attention import AttentionInputs
from ssa.model.attention_stats import query_key_norms
from ssa.model.config import TemperatureConfig, Terms
from ssa.model.transformer import Transformer
from ssa.record.run_files import read_rows, read_summary
from ssa.record.run_record import run_folder
from ssa.text.tokenization import train_bpe
from ssa.training.train import train
from ssa.viz import plot_style

EVERYTHING = TemperatureConfig(name="all", query=BOTH, key=BOTH, value=BOTH, output=BOTH)
KINDS = ["gpt2", "gpt_neox", "llama"]


def model(model_type: str, temperature: TemperatureConfig = SSA) -> Transformer:
    """A model with weights large enough for sharp maps and varied temperatures."""
    made = Transformer(small(model_type, temperature)).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return made


def batch(visible_keys: torch.Tensor | None = None) -> Batch:
    return Batch(ids(), visible_keys, np.arange(VOCAB) * 7)


def tables(measured: Measured) -> Tables:
    return tables_of(measured, lambda token: f"<{token[0]}>")


def column(table: object, name: str, *shape: int) -> np.ndarray:
    return table[name].to_numpy().reshape(shape)  # type: ignore[index]


def maps(
    made: Transformer, visible_keys: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, list[AttentionInputs]]:
    """Softmax rows and logits as T x T matrices, (L, B, H, T, T), and the attention inputs."""
    seen: list[AttentionInputs] = []
    with torch.no_grad():
        made(ids(), observe=seen.append, visible_keys=visible_keys)
    length = ids().size(1)
    n = torch.arange(1, length + 1).expand_as(ids()) if visible_keys is None else visible_keys
    own, keys = torch.arange(length)[:, None], torch.arange(length)
    hidden = (keys > own) | (keys <= own - n[:, :, None])  # (B, T, T)
    logits = torch.stack(
        [
            one.query.double() @ one.key.double().repeat_interleave(4 // one.key.size(1), 1).mT / math.sqrt(8)
            for one in seen
        ]
    ).masked_fill(hidden[:, None], -math.inf)
    return logits.softmax(-1), logits, seen


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("model_type", KINDS)
def test_matches_materialized_attention_maps(model_type: str, documents: bool) -> None:
    made = model(model_type)
    visible_keys = torch.tensor([[*range(1, 11), *range(1, 15)], range(1, 25)]) if documents else None
    p, logits, seen = maps(made, visible_keys)
    measured = measure(made, batch(visible_keys))
    n = torch.arange(1, 25).expand(2, -1) if visible_keys is None else visible_keys
    entropy = -torch.xlogy(p, p).sum(-1)  # (L, B, H, T)
    spikiness = 1 / (n[:, None] * p.square().sum(-1))
    heads = tables(measured)["heads"]
    assert column(heads, "entropy", 2, 4) == pytest.approx(entropy.mean((1, 3)).numpy(), abs=1e-5)
    assert column(heads, "spikiness", 2, 4) == pytest.approx(spikiness.mean((1, 3)).numpy(), abs=1e-5)
    assert column(heads, "max_logit", 2, 4) == pytest.approx(logits.amax((1, 3, 4)).numpy(), abs=1e-4)
    log_n = n.log().flatten().numpy()
    rows = entropy.transpose(1, 2).flatten(2).numpy()
    assert column(heads, "dilution", 2, 4)[1, 2] == pytest.approx(np.polyfit(log_n, rows[1, 2], 1)[0], abs=1e-5)
    positions = tables(measured)["positions"]
    for length, count in ((5, 3 if documents else 2), (20, 1 if documents else 2)):
        here = [row for row in positions.to_pylist() if row["n"] == length]
        expected = torch.stack([entropy[:, b, :, t] for b, t in (n == length).nonzero().tolist()]).mean(0)
        assert [row["count"] for row in here] == [count] * 8
        assert [row["entropy"] for row in here] == pytest.approx(expected.flatten().tolist(), abs=1e-5)
        normalized = [entropy / math.log(length) for entropy in expected.flatten().tolist()]
        assert [row["entropy_normalized"] for row in here] == pytest.approx(normalized, abs=1e-5)
    tau = torch.stack([one.temperatures["query"] for one in seen])[..., 0]  # (L, B, H, T)
    means = column(tables(measured)["temperatures"][:8], "mean", 2, 4)
    assert means == pytest.approx(tau.mean((1, 3)).numpy(), abs=1e-5)


@pytest.mark.parametrize("model_type", KINDS)
def test_norms_match_the_materialized_matrix(model_type: str) -> None:
    made = model(model_type)
    norms, config = query_key_norms(made), made.config
    for layer, block in enumerate(made.blocks):
        weight = block.attention.qkv.weight.detach().double()
        query, key, _ = weight.split([32, config.n_kv_head * 8, config.n_kv_head * 8])
        for head in range(4):
            group = head // (4 // config.n_kv_head)
            matrix = query[8 * head : 8 * head + 8].T @ key[8 * group : 8 * group + 8] / math.sqrt(8)  # (D, D)
            assert norms[layer, head].item() == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-10)


def test_norms_with_heads_wider_than_the_model() -> None:
    made = Transformer(small("gpt2", head_dim=48)).eval()
    weight = made.blocks[1].attention.qkv.weight.detach().double()
    matrix = weight[48:96].T @ weight[4 * 48 + 48 : 4 * 48 + 96] / math.sqrt(48)
    norm = query_key_norms(made)[1, 1].item()
    assert norm == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-10)


def test_norms_times_temperatures() -> None:
    made = model("llama")
    measured = measure(made, batch())
    tau = np.stack(
        [one.temperatures["query"][..., 0].transpose(0, 1).flatten(1).numpy() for one in maps(made, None)[2]]
    )
    expected = np.abs(tau) * measured.norms[..., None]  # (L, H, N)
    assert measured.tau_norms == pytest.approx(expected, rel=1e-5)
    norms = column(tables(measured)["norms"], "tau_norm", 2, 4, 101)
    assert norms[1, 3, [0, 50, 100]] == pytest.approx(np.percentile(expected[1, 3], [0, 50, 100]), rel=1e-5)
    assert summary_of(measured)["query_key_tau_norm"] == pytest.approx(expected.mean(), rel=1e-5)


def test_uniform_attention_has_entropy_log_n() -> None:
    made = model("gpt2", TemperatureConfig())
    for block in made.blocks:
        block.attention.qkv.weight.data[:32] = 0
        block.attention.qkv.bias.data[:32] = 0
    measured = measure(made, batch())
    assert measured.rows["entropy"] == pytest.approx(np.broadcast_to(measured.log_n, (2, 4, 48)), abs=1e-6)
    positions = tables(measured)["positions"]
    assert column(positions, "entropy", -1) == pytest.approx(np.log(column(positions, "n", -1)), abs=1e-6)
    summary = summary_of(measured)
    assert summary["attention_dilution"] == pytest.approx(1, abs=1e-6)
    assert summary["attention_entropy_normalized"] == pytest.approx(1, abs=1e-6)
    assert summary["query_key_norm"] == 0


def test_vanilla_model_has_no_temperature_tables() -> None:
    measured = measure(model("gpt2", TemperatureConfig()), batch())
    found = tables(measured)
    assert list(found) == ["heads", "positions", "norms"]
    assert column(found["heads"], "tau_norm", 2, 4) == pytest.approx(measured.norms)
    assert not any("temperature" in name for name in summary_of(measured))
    assert extremes(found) == {}


def test_keys_and_values_have_their_own_heads() -> None:
    measured = measure(model("llama", EVERYTHING), batch())
    assert {of: tau.shape for of, tau in measured.temperatures.items()} == {
        "query": (2, 4, 48),
        "key": (2, 2, 48),
        "value": (2, 2, 48),
        "output": (2, 4, 48),
    }
    rows = tables(measured)["temperatures"].to_pylist()
    assert [row["of"] for row in rows] == ["query"] * 8 + ["key"] * 4 + ["value"] * 4 + ["output"] * 8
    assert (rows[9]["layer"], rows[9]["head"]) == (0, 1)
    assert rows[9]["std"] == pytest.approx(measured.temperatures["key"][0, 1].std(dtype=float))


def test_temperature_by_feature_has_no_norms() -> None:
    measured = measure(model("gpt2", TemperatureConfig(query=Terms(multiplier="rms_norm"))), batch())
    found = tables(measured)
    assert measured.tau_norms is None
    assert "norms" not in found
    assert "tau_norm" not in found["heads"].column_names
    assert measured.temperatures["query"].shape == (2, 4, 48)


def test_correlations_with_position_and_frequency() -> None:
    made = model("gpt2", TemperatureConfig(query=Terms(position="log"), value=Terms(multiplier="yarn")))
    summary = summary_of(measure(made, batch()))
    assert summary["temperature/query/correlation_log_n"] == pytest.approx(1)
    assert abs(summary["temperature/query/correlation_log_count"]) < 0.9
    assert "temperature/value/correlation_log_n" not in summary  # a constant
    x, y = np.random.default_rng(0).normal(size=(2, 50))
    assert correlation(y, x) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert slope(y, x) == pytest.approx(np.polyfit(x, y, 1)[0])
    assert np.isnan(slope(y, np.ones(50)))


def test_tokens_table() -> None:
    made = model("gpt2", TemperatureConfig(query=Terms(token="shared")))
    repeated = torch.tensor([[1, 2, 3, 4] * 6, [4, 3, 2, 1] * 5 + [9] * 4])
    measured = measure(made, Batch(repeated, None, np.arange(VOCAB) * 7))
    found = tables(measured)
    rows = found["tokens"].to_pylist()
    assert [(row["token"], row["count"], row["frequency"], row["text"]) for row in rows[1:]] == [
        (2, 11, 14, "<2>"),
        (3, 11, 21, "<3>"),
        (4, 11, 28, "<4>"),
        (9, 4, 63, "<9>"),
    ]
    of_two = measured.temperatures["query"].mean((0, 1))[repeated.flatten() == 2].mean()
    assert rows[1]["mean"] == pytest.approx(of_two, rel=1e-6)
    chosen = extremes(found)["query"]
    assert {row["token"] for row in chosen["highest"]} == {1, 2, 3, 4}  # 9 is too rare
    assert chosen["highest"] == chosen["lowest"][::-1]
    means = [row["mean"] for row in chosen["highest"]]
    assert means == sorted(means, reverse=True)


def test_single_token() -> None:
    summary = summary_of(measure(model("gpt2"), Batch(torch.tensor([[5]]), None, np.ones(VOCAB))))
    assert summary["attention_entropy"] == 0
    assert "attention_dilution" not in summary


@pytest.fixture
def run(smoke: Callable[..., Config]) -> Callable[..., Path]:
    """A function that trains a run and returns its folder."""

    def make(*overrides: str) -> Path:
        config = smoke(*TINY, "trainer.probe_sequences=3", *overrides)
        train(config)
        return run_folder(config)

    return make


def report(folder: Path, **settings: object) -> dict:
    return evaluate(EvaluateSettings(run=str(folder), tasks=["attention"], **settings))["attention"]  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [["model=ssa_gpt2", "data.document_mask=true"], ["model=llama"]])
def test_run_matches_its_validation_log(run, overrides: list[str]) -> None:
    folder = run(*overrides)
    found = report(folder)
    best = read_summary(folder)["best_step"]
    row = next(row for row in read_rows(folder) if row["step"] == best and "val/loss" in row)
    logged = {name: value for name, value in row.items() if name.startswith(("val/attention", "val/temperature"))}
    del logged["val/temperature_position"], logged["val/temperature_token"]  # how far the temperatures have moved
    assert found["details"]["statistics"] == logged
    assert found["metrics"]["attention_entropy"]["value"] == row["val/attention_entropy"]
    assert (found["n"], found["counts"], found["settings"]["text"]) == (3, {"tokens": 192, "window": 64}, "validation")
    heads = pq.read_table(folder / "evaluation/attention/heads.parquet")
    logged_heads = [value for name, value in logged.items() if "attention_entropy/" in name and "head" in name]
    assert heads["entropy"].to_pylist() == logged_heads
    of = {key.decode(): json.loads(value) for key, value in heads.schema.metadata.items()}
    assert of["settings"] == found["settings"]
    assert of["model"]["weights_hash"] == found["model"]["weights_hash"]


@pytest.mark.slow
def test_writes_tables_and_plots(run) -> None:
    pytest.importorskip("matplotlib")
    folder = run("model=ssa_gpt2")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="matplotlib")
        found = report(folder)
    names = {"entropy", "dilution", "spikiness", "norms"}
    names |= {f"temperature_{kind}" for kind in ("position", "frequency", "tokens")}
    tables = {"heads", "positions", "norms", "temperatures", "temperature_positions", "tokens"}
    expected = {f"{name}.{kind}" for name in names for kind in ("png", "svg", "pdf")} | {
        f"{name}.parquet" for name in tables
    }
    written = {path.name: path for path in (folder / "evaluation" / "attention").iterdir()}
    assert set(written) == expected
    assert {Path(file).name for file in found["details"]["files"]} == expected
    for name, path in written.items():
        if name.endswith(".png"):
            assert path.read_bytes().startswith(b"\x89PNG")
        elif name.endswith(".svg"):
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    tokens = pq.read_table(written["tokens.parquet"]).to_pylist()
    assert sum(row["count"] for row in tokens if row["of"] == "query") == 192
    assert sum(row["frequency"] for row in tokens if row["of"] == "query") > 10_000  # in the train split
    assert found["details"]["frequencies"] == "of the train split"
    assert found["details"]["tokens"]["value"]["highest"][0]["text"]


@pytest.mark.slow
def test_without_matplotlib_writes_tables_only(
    run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("model=gpt2")
    monkeypatch.setattr(plot_style, "available", lambda: False)
    report(folder)
    assert {path.suffix for path in (folder / "evaluation" / "attention").iterdir()} == {".parquet"}
    lines = [line for line in capsys.readouterr().out.splitlines() if "plots" in line]
    assert lines == ["attention: no plots without matplotlib; pip install -e '.[plots]', then rerun=true"]


@pytest.mark.slow
def test_context_sets_the_window(run) -> None:
    found = report(run("model=llama", "trainer.precision=32-true"), context=16)
    assert found["counts"] == {"tokens": 48, "window": 16}
    assert found["settings"]["window"] == 16


@pytest.mark.slow
def test_pretrained_model_on_a_text(tmp_path: Path, small_text: Path) -> None:
    from pydoc_data.topics import topics

    folder = tmp_path / "tiny-llama"
    write_model(folder, "llama")
    (folder / "tokenizer.json").write_text(train_bpe(iter(topics.values()), VOCAB))
    settings = EvaluateSettings(
        init_from=str(folder), tasks=["attention"], text=str(small_text), output_dir=str(tmp_path / "out")
    )
    found = evaluate(settings)["attention"]
    assert found["counts"] == {"tokens": 8 * 64, "window": 64}
    assert "attention_entropy/layer_01/head_03" in found["details"]["statistics"]
    assert found["details"]["frequencies"] == "of the text"
    evaluated = EvaluatedModel(init_from=str(folder), device="cpu")
    first = Attention(settings, evaluated)._batch(evaluated).ids
    assert (first[:, 0] == evaluated.prefix).all()
    text = evaluated.tokenizer.encode_batch([small_text.read_text()])[0]
    assert first[:, 1:].flatten().tolist() == text[: 8 * 63]


def test_refuses_context_of_one(tmp_path: Path) -> None:
    folder = tmp_path / "tiny-llama"
    write_model(folder, "llama")
    settings = EvaluateSettings(init_from=str(folder), tasks=["attention"], context=1)
    with pytest.raises(UserError, match=r"context=1: .* valid for attention: 2 or more"):
        Attention(settings, EvaluatedModel(init_from=str(folder), context=1, device="cpu"))
