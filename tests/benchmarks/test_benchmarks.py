"""Benchmarks: what their figures mean, and their command line.  No test measures a time."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import models
from benchmarks.measure import Figure, exponent, interleaved, machine, markdown, ratio, seconds
from benchmarks.models import SSA, Shape
from benchmarks.step import step
from ssa.files import read_json

TINY = Shape(n_layer=2, d_model=16, n_head=2, length=12, batch=2, vocabulary=50)


def test_cases_take_turns_and_change_places() -> None:
    order: list[str] = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1)
    assert "".join(order) == "baabbaab"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize(("goal", "reached"), [("<= 2.0", True), ("<= 1.9", False), (">= 2", True), (None, None)])
def test_a_goal_is_reached_or_not(goal: str | None, reached: bool | None) -> None:
    assert Figure("x", 2.0, "s", goal=goal).reached is reached


def test_ratios_are_of_pairs() -> None:
    drifting = [1.0, 2.0, 4.0, 8.0]
    made = ratio("x", [1.5 * value for value in drifting], drifting)
    assert (made.value, made.low, made.high) == pytest.approx((1.5, 1.5, 1.5))


def test_the_exponent_of_a_power() -> None:
    made = exponent("x", [1, 10, 100], [3 * size**1.7 for size in (1, 10, 100)], "<= 1.8")
    assert (made.value, made.low, made.high, made.reached) == pytest.approx((1.7, 1.7, 1.7, True))


def test_a_table_marks_what_falls_short() -> None:
    rows = markdown([seconds("fast", [1.0, 2.0, 9.0], "<= 2.5"), Figure("slow", 1234.0, "MB", goal="<= 300")])
    assert rows.splitlines()[2] == "| fast | 2 s | 1 to 9 | <= 2.5 | yes |"
    assert rows.splitlines()[3] == "| slow | 1,234 MB |  | <= 300 | no |"


def test_the_machine_is_stated() -> None:
    stated = machine()
    assert stated["cpu"]
    assert stated["cores"] >= 1
    assert 0 <= stated["busy"] <= 1


def losses(model: torch.nn.Module, loss: models.Loss) -> float:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
        return loss(*TINY.tokens()).item()


@pytest.mark.parametrize("make", [models.plain, models.transformers_gpt2])
def test_other_implementations_have_the_same_work(make) -> None:
    ours, theirs = models.ours(TINY), make(TINY)
    count = [sum(parameter.numel() for parameter in model.parameters()) for model, _ in (ours, theirs)]
    assert count[0] == count[1]
    for model, loss in (ours, theirs):
        assert losses(model, loss) == pytest.approx(math.log(TINY.vocabulary), rel=0.05)


def test_the_materialized_rule_is_ours() -> None:
    query, key, value = torch.randn(3, 2, 2, 9, 8, dtype=torch.float64)
    alpha = torch.tensor([-1.0, 0.5], dtype=torch.float64)[:, None, None]
    tau = 1 + torch.sigmoid(alpha) * torch.arange(1, 10).log()[:, None]
    want = torch.nn.functional.scaled_dot_product_attention(tau * query, key, value, is_causal=True)
    torch.testing.assert_close(models.materialized_attention(query, key, value, alpha), want)


def test_a_step_trains() -> None:
    model, loss = models.ours(TINY, SSA)
    before = loss(*TINY.tokens()).item()
    run = step(model, loss, TINY)
    for _ in range(3):
        run()
    assert loss(*TINY.tokens()).item() < before


def test_an_unknown_benchmark_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["steps"]) == 2
    assert capsys.readouterr().err == f"error: steps: no such benchmark; valid: {', '.join(program.NAMES)}\n"


def test_a_missed_goal_is_exit_code_1_and_the_figures_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import loss

    missed = Figure("memory", 400.0, "MB", goal="<= 300")
    monkeypatch.setattr(loss, "figures", lambda settings: [missed, Figure("time", 1.0, "s", goal="<= 2")])
    assert program.main(["loss", f"to={tmp_path}/out"]) == 1
    assert "goal missed: loss: memory" in capsys.readouterr().out
    written = read_json(tmp_path / "out.json")
    assert [figure["value"] for figure in written["benchmarks"]["loss"]] == [400.0, 1.0]
    assert "| memory | 400 MB |" in (tmp_path / "out.md").read_text()


def test_every_benchmark_has_a_module() -> None:
    folder = Path(program.__file__).parent
    helpers = {"__init__", "__main__", "measure", "models", "settings"}
    assert {path.stem for path in folder.glob("*.py")} - helpers == set(program.NAMES)
