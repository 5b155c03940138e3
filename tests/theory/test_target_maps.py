"""Maps fitted to targets: targets, norms, and equal conditions for both methods."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from experiments.__main__ import main
from ssa.theory import ensemble
from ssa.theory.attention_map import spikiness
from ssa.theory.ensemble import generator
from ssa.theory.target_maps import (
    TargetFit,
    at_level,
    embeddings,
    fit,
    group_sizes,
    group_target,
    problem,
    scaled_target,
    sharpness,
)

N, WIDTH = 12, 6
SMALL = {"n": N, "width": WIDTH, "spread": 4.0, "mean": 2.0, "lr": 0.03, "seeds": 2}


def exact(spread: float = 4.0) -> tuple[TargetFit, Tensor, Tensor]:
    """A fit with W = M and tau = s, set by hand; M; s."""
    draws = generator(0)
    x, s = embeddings(N, WIDTH, draws), sharpness(N, spread, 2.0)
    matrix = torch.randn(WIDTH, WIDTH, generator=draws, dtype=torch.float64) / WIDTH
    member = TargetFit(x, scaled_target(x, matrix, s), "free", 0.1, "effective", seed=0)
    with torch.no_grad():
        member.map.key.copy_(torch.eye(WIDTH))
        member.map.query.copy_(matrix.mT * WIDTH**0.5)
        member.theta.copy_(s.log())
    return member, matrix, s


def test_embeddings_have_equal_norms() -> None:
    torch.testing.assert_close(embeddings(N, WIDTH, generator(1)).square().mean(-1), torch.ones(N, dtype=torch.float64))


@pytest.mark.parametrize("spread", [1.0, 2.0, 16.0])
def test_sharpness_has_its_mean_and_spread(spread: float) -> None:
    s = sharpness(N, spread, 2.0)
    assert s.mean().item() == pytest.approx(2.0)
    assert (s[-1] / s[0]).item() == pytest.approx(spread)
    steps = s[1:] / s[:-1]
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))


def test_rows_of_the_scaled_target_are_scaled_softmaxes() -> None:
    x, target = problem("scaled", N, WIDTH, 4.0, 2.0, seed=3)
    draws = generator(3)
    assert torch.equal(x, embeddings(N, WIDTH, draws))
    matrix = torch.randn(WIDTH, WIDTH, generator=draws, dtype=torch.float64) / WIDTH
    s = sharpness(N, 4.0, 2.0)
    for i in range(N):
        row = [math.exp(s[i].item() * (x[i] @ matrix @ x[j]).item()) for j in range(N)]
        assert target[i].tolist() == pytest.approx([value / sum(row) for value in row])
    torch.testing.assert_close(target.sum(-1), torch.ones(N, dtype=torch.float64))


def test_problems_of_a_seed_differ_in_the_spread_only() -> None:
    (x, equal), (y, mixed) = (problem("scaled", N, WIDTH, spread, 2.0, seed=0) for spread in (1.0, 8.0))
    assert torch.equal(x, y)
    # logits of a row are proportional: equal up to s and a constant
    a, b = (p.log() - p.log().mean(-1, keepdim=True) for p in (equal, mixed))
    torch.testing.assert_close(b, a * (sharpness(N, 8.0, 2.0) / 2.0).unsqueeze(-1))
    assert not torch.equal(x, problem("scaled", N, WIDTH, 1.0, 2.0, seed=1)[0])


@pytest.mark.parametrize("spread", [1.0, 4.0, 16.0])
def test_groups_are_uniform_with_the_spikiness_designed(spread: float) -> None:
    sizes = group_sizes(32, spread)
    assert sizes == sorted(sizes)
    assert sizes[-1] / sizes[0] == pytest.approx(spread)
    target = group_target(sizes, generator(0))
    torch.testing.assert_close(target.sum(-1), torch.ones(32, dtype=torch.float64))
    torch.testing.assert_close(spikiness(target), torch.tensor(sizes) / 32, check_dtype=False)
    assert [len(set(row[row > 0].tolist())) for row in target] == [1] * 32


def test_groups_smaller_than_one_token_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^spread=17: no groups of 32 tokens; valid: 1 to 16$"):
        group_sizes(32, 17)


def test_without_spread_rows_are_equally_sharp() -> None:
    assert sharpness(N, 1.0, 2.0).tolist() == [2.0] * N
    assert len(set(group_sizes(32, 1.0))) == 1


@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_per_row_temperatures_reach_the_scaled_target_exactly(spread: float) -> None:
    member, _, _ = exact(spread)
    found = member.measure()
    assert abs(found["kl"]) < 1e-12
    assert found["l1"] < 1e-12
    assert found["explained"] == pytest.approx(1)
    assert found["spikiness_error"] < 1e-12


def test_norms_are_those_of_the_explicit_matrices() -> None:
    member, matrix, s = exact()
    found = member.measure()
    norms = torch.stack([torch.linalg.svdvals(each * matrix)[0] for each in s])
    assert found["norm"] == pytest.approx(torch.linalg.svdvals(matrix)[0].item())
    assert found["norm_mean"] == pytest.approx(norms.mean().item())
    assert found["norm_max"] == pytest.approx(norms.max().item())
    assert found["norm_geometric"] == pytest.approx(norms.log().mean().exp().item())
    mean_square = torch.stack([(each * matrix).square().sum() for each in s]).mean().item()
    assert found["frobenius"] ** 2 == pytest.approx(mean_square)
    assert member().item() == pytest.approx(0.1 * mean_square)


def test_nothing_is_gained_by_moving_scale_into_temperatures() -> None:
    member, _, _ = exact()
    before, loss = member.measure(), member().item()
    with torch.no_grad():
        member.map.query.div_(3)
        member.theta.add_(math.log(3))
    after = member.measure()
    assert member().item() == pytest.approx(loss)
    for name in ("norm_mean", "norm_max", "norm_geometric", "frobenius"):
        assert after[name] == pytest.approx(before[name])
    assert after["norm"] == pytest.approx(before["norm"] / 3)


def test_plain_weight_decay_ignores_temperatures() -> None:
    x, target = problem("scaled", N, WIDTH, 4.0, 2.0, seed=0)
    member = TargetFit(x, target, "ssa", 0.5, "weights", seed=0)
    squares = sum(values.square().sum().item() for values in (member.map.query, member.map.key))
    assert member().item() == pytest.approx(member.measure()["kl"] + 0.5 * squares / (2 * WIDTH**0.5))


def test_uniform_maps_explain_nothing() -> None:
    x, target = problem("groups", 16, WIDTH, 2.0, 2.0, seed=0)
    member = TargetFit(x, target, "vanilla", 0.0, "effective", seed=0)
    with torch.no_grad():
        member.map.query.zero_()
    found = member.measure()
    assert found["explained"] == pytest.approx(0)
    assert found["kl"] == pytest.approx(sum(math.log(16 / k) for k in group_sizes(16, 2.0)) / 16)


@pytest.mark.parametrize("penalty", ["effective", "weights"])
def test_temperatures_frozen_at_the_identity_are_vanilla(penalty: str) -> None:
    members = {}
    for method in ("vanilla", "ssa"):
        members[method] = [
            TargetFit(*problem("scaled", N, WIDTH, 4.0, 2.0, seed), method, 0.01, penalty, seed)  # type: ignore[arg-type]
            for seed in range(2)
        ]
        for member in members[method]:
            for name, values in member.map.temperature.named_parameters():
                values.requires_grad_(False)
                values.fill_(-math.inf if name.endswith("alpha") else 0.0)
        start = members[method][0].map.query.detach().clone()
        ensemble.train(members[method], lambda number, chunk: (), steps=20, lr=0.03)
        assert not torch.equal(members[method][0].map.query, start)
    assert all("query" in member.map.temperature for member in members["ssa"])
    for vanilla, ssa in zip(members["vanilla"], members["ssa"], strict=True):
        assert torch.equal(vanilla.map.query, ssa.map.query)
        assert torch.equal(vanilla.map.key, ssa.map.key)
        assert vanilla.measure() == ssa.measure()


@pytest.mark.parametrize("method", ["ssa", "free"])
def test_sequential_training_gives_the_same_numbers(method: str) -> None:
    both = [
        fit(family="scaled", method=method, penalty="effective", decays=[0.1, 0.01], steps=10, vectorized=each, **SMALL)  # type: ignore[arg-type]
        for each in (True, False)
    ]
    assert [(row["seed"], row["decay"]) for row in both[0]] == [(0, 0.1), (0, 0.01), (1, 0.1), (1, 0.01)]
    for one, other in zip(*both, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_a_map_with_temperatures_is_not_worse_than_vanilla_at_the_same_decay() -> None:
    def losses(method: str) -> list[float]:
        rows = fit(
            family="scaled", method=method, penalty="effective", decays=[0.03], steps=300, vectorized=True, **SMALL
        )  # type: ignore[arg-type]
        return [row["kl"] + 0.03 * row["frobenius"] ** 2 for row in rows]

    for vanilla, ssa, free in zip(*(losses(method) for method in ("vanilla", "ssa", "free")), strict=True):
        assert ssa < vanilla
        assert free < vanilla


def test_a_level_is_interpolated_between_two_decays() -> None:
    path = [{"decay": d, "explained": e, "norm": n} for d, e, n in ((0.1, 0.8, 3.0), (1.0, 0.4, 1.0), (0.01, 0.9, 7.0))]
    assert at_level(path, 0.4, "norm") == 1.0
    assert at_level(path, 0.6, "norm") == pytest.approx(2.0)
    assert at_level(path, 0.85, "norm") == pytest.approx(5.0)
    assert math.isnan(at_level(path, 0.3, "norm"))
    assert math.isnan(at_level(path, 0.95, "norm"))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["spread=3"], "spread=3: valid: one of spreads, "),
        (["spreads=1,8,32"], "spreads=32: no groups of 32 tokens; valid: 1 to 16"),
        (["widths=16,32"], "widths=32: valid: less than tokens=32"),
        (["items=12"], "items=12: valid: a power of 2, such as 8"),
        (["query_levels=0-6"], "query_levels=0-6: valid: LOW-HIGH from 0 to 5 with items=32"),
        (["query_levels=3-1"], "query_levels=3-1: valid: LOW-HIGH"),
        (["shapes=16x3"], "shapes=16x3: valid: WIDTHxHEADS, where HEADS divides WIDTH"),
        (["levels=1"], "levels"),
    ],
)
def test_bad_settings_are_one_line(arguments: list[str], error: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fig2_norms", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {error}")
    assert printed.count("\n") == 1


@pytest.mark.slow
def test_the_experiment_counts_every_run(tmp_path: Path) -> None:
    to = tmp_path / "to"
    short = ["fit_steps=10", "lookup_steps=10", "spreads=4", "jobs=1", f"output_dir={tmp_path}", f"to={to}"]
    assert main(["fig2_norms", "scale=smoke", *short]) == 0
    with (to / "smoke_runs.csv").open(encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    # two families, three methods and two of them under plain weight decay, three decays; one lookup of two methods
    assert len(runs) == 2 * (2 * (3 + 2) * 3 + 2)
    keys = [tuple(run[name] for name in ("panel", "target", "penalty", "decay", "method", "seed")) for run in runs]
    assert len(set(keys)) == len(runs)
    with (to / "smoke_conclusions.csv").open(encoding="utf-8") as file:
        claims = [row["claim"] for row in csv.DictReader(file)]
    assert claims[0].startswith("at equal KL, maps ")
    assert {path.name for path in to.glob("*.png")} == {"smoke_fit.png", "smoke_figure.png"}
