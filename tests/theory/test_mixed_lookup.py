"""Mixed lookup: tree, targets and exact risk; equal conditions for both methods."""

from __future__ import annotations

import math

import pytest
import torch

from ssa.theory import ensemble
from ssa.theory.attention_map import QUERY, VANILLA, AttentionMap, spikiness
from ssa.theory.ensemble import generator
from ssa.theory.mixed_lookup import (
    MixedLookup,
    balanced_queries,
    draw_batches,
    ideal_maps,
    nodes_at,
    train_lookup,
    tree_embeddings,
)

ITEMS, WIDTH, HEADS, VALUE_DIM = 8, 6, 2, 3
NODES = 2 * ITEMS - 1
SMALL = {"levels": [0, 1, 3], "items": ITEMS, "width": WIDTH, "heads": HEADS, "value_dim": VALUE_DIM, "lr": 0.03}


def lookup(method: str = "vanilla", seed: int = 0) -> MixedLookup:
    temperature = {"vanilla": VANILLA, "ssa": QUERY}[method]
    attention = AttentionMap(WIDTH, WIDTH // HEADS, temperature, n_head=HEADS, seed=seed)
    tree = tree_embeddings(ITEMS, WIDTH, generator(seed, 0))
    return MixedLookup(tree, attention, VALUE_DIM, generator(seed, 1))


def below(node: int) -> list[int]:
    """Items below a node, by recursion."""
    return [node - ITEMS] if node >= ITEMS else [*below(2 * node), *below(2 * node + 1)]


def test_an_embedding_is_the_sum_of_its_ancestors_vectors() -> None:
    vectors = torch.randn(NODES, WIDTH, generator=generator(5), dtype=torch.float64)
    found = tree_embeddings(ITEMS, WIDTH, generator(5))
    for node in range(1, 2 * ITEMS):
        total, ancestor = torch.zeros(WIDTH, dtype=torch.float64), node
        while ancestor:
            total, ancestor = total + vectors[ancestor - 1], ancestor // 2
        torch.testing.assert_close(found[node - 1], total * WIDTH**0.5 / total.norm())


def test_ideal_maps_are_uniform_over_the_items_below() -> None:
    ideal = ideal_maps(ITEMS)
    for node in range(1, 2 * ITEMS):
        wanted = [1 / len(below(node)) if item in below(node) else 0.0 for item in range(ITEMS)]
        assert ideal[node - 1].tolist() == wanted
    for level in range(4):
        at = list(nodes_at(level, ITEMS))
        assert len(at) == ITEMS >> level
        assert spikiness(ideal[at]).tolist() == [2**level / ITEMS] * len(at)


def test_balanced_queries_name_each_level_equally_often() -> None:
    queries = balanced_queries([0, 2], ITEMS).tolist()
    assert queries == [7, 8, 9, 10, 11, 12, 13, 14, *[1] * 4, *[2] * 4]


def test_the_loss_is_that_of_the_means_of_the_items_below() -> None:
    member = lookup()
    queries, values = (part[0] for part in draw_batches(ITEMS, [0, 1, 2, 3], 5, VALUE_DIM, generator(1)))
    maps, total = member.maps(), 0.0
    for query, context in zip(queries.tolist(), values, strict=True):
        wanted = torch.stack([context[item] for item in below(query + 1)]).mean(0)
        answer = sum(member.output[h] @ member.value[h] @ (maps[h, query] @ context) for h in range(HEADS))
        total += (answer - wanted).square().mean().item()
    assert member(queries, values).item() == pytest.approx(total / 5)


def test_the_error_of_a_node_is_exact() -> None:
    """The expected square of a linear map of normal values is the sum of its squares on a basis."""
    member, basis = lookup("ssa"), torch.eye(ITEMS * VALUE_DIM, dtype=torch.float64).reshape(-1, ITEMS, VALUE_DIM)
    for query in range(NODES):
        loss = member(torch.full((len(basis),), query), basis).item()
        assert member.errors()[query].item() == pytest.approx(loss * len(basis))


def test_the_ideal_map_makes_no_error() -> None:
    """Every node has its own direction, so that W can represent any map."""
    attention = AttentionMap(NODES, NODES, VANILLA)
    member = MixedLookup(torch.eye(NODES, dtype=torch.float64), attention, VALUE_DIM, generator(0))
    wanted = torch.zeros(NODES, NODES, dtype=torch.float64)
    wanted[:, -ITEMS:] = torch.where(ideal_maps(ITEMS) > 0, 0.0, -1e4)
    with torch.no_grad():
        attention.key.copy_(torch.eye(NODES))
        attention.query.copy_(wanted.mT * NODES**0.5)
        member.value.copy_(torch.eye(VALUE_DIM))
        member.output.copy_(torch.eye(VALUE_DIM))
    assert member.errors().max().item() < 1e-28
    assert member(*(part[0] for part in draw_batches(ITEMS, [0, 1, 2, 3], 9, VALUE_DIM, generator(1)))).item() < 1e-28
    found = member.measure([0, 1, 2, 3])
    assert found["spikiness"] == pytest.approx(found["target_spikiness"]) == pytest.approx((1 + 2 + 4 + 8) / 4 / ITEMS)
    assert found["spikiness_error"] == pytest.approx(0, abs=1e-12)


def test_norms_are_those_of_each_querys_matrix() -> None:
    member = lookup("ssa", seed=2)
    with torch.no_grad():
        for name, values in member.attention.temperature.named_parameters():
            values.fill_(-1.0) if name.endswith("alpha") else values.normal_(generator=generator(9))
    found, levels = member.measure([0, 2]), 2
    queries = balanced_queries([0, 2], ITEMS)
    tau = member.attention.temperatures(member.nodes.unsqueeze(0), ITEMS)[0]
    assert tau.std().item() > 0.05
    q, k = (part.reshape(HEADS, WIDTH // HEADS, WIDTH) for part in (member.attention.query, member.attention.key))
    norms = torch.stack(
        [
            torch.stack([torch.linalg.svdvals(tau[h, node] * q[h].mT @ k[h])[0] for node in queries])
            for h in range(HEADS)
        ]
    ) / math.sqrt(WIDTH // HEADS)
    torch.testing.assert_close(torch.tensor(found["tokens"]["norm"], dtype=torch.float64), norms)
    assert found["norm_mean"] == pytest.approx(norms.mean().item())
    assert found["norm_max"] == pytest.approx(norms.max().item())
    assert found["norm_geometric"] == pytest.approx(norms.log().mean(-1).exp().mean().item())
    assert torch.tensor(found["by_level"]["tau"]).shape == (levels, HEADS)
    first = [tau[h, queries[:ITEMS]].mean().item() for h in range(HEADS)]
    assert found["by_level"]["tau"][0] == pytest.approx(first)
    assert found["mse"] == pytest.approx(sum(found["by_level"]["mse"]) / levels)


def test_batches_have_the_requested_levels_and_depend_on_their_generator_only() -> None:
    queries, values = draw_batches(ITEMS, [1, 3], 64, VALUE_DIM, generator(0, 2, 1))
    assert queries.shape == (ensemble.CHUNK, 64)
    assert values.shape == (ensemble.CHUNK, 64, ITEMS, VALUE_DIM)
    assert set(queries.unique().tolist()) == {*nodes_at(1, ITEMS), *nodes_at(3, ITEMS)}
    assert (queries == 0).double().mean().item() == pytest.approx(0.5, abs=0.03)
    again = draw_batches(ITEMS, [1, 3], 64, VALUE_DIM, generator(0, 2, 1))
    assert torch.equal(queries, again[0])
    assert torch.equal(values, again[1])
    assert not torch.equal(values, draw_batches(ITEMS, [1, 3], 64, VALUE_DIM, generator(0, 2, 2))[1])


def test_methods_start_from_the_same_weights() -> None:
    vanilla, ssa = lookup("vanilla", seed=4), lookup("ssa", seed=4)
    for name, values in vanilla.state_dict().items():
        assert torch.equal(values, ssa.state_dict()[name])


def test_temperatures_frozen_at_the_identity_are_vanilla() -> None:
    trained = {}
    for method in ("vanilla", "ssa"):
        members = [lookup(method, seed) for seed in range(2)]
        for member in members:
            for name, values in member.attention.temperature.named_parameters():
                values.requires_grad_(False)
                values.fill_(-math.inf if name.endswith("alpha") else 0.0)
        ensemble.train(
            members,
            lambda seed, chunk: draw_batches(ITEMS, [0, 1], 4, VALUE_DIM, generator(seed, chunk)),
            steps=20,
            lr=0.03,
        )
        trained[method] = members
    assert all("query" in member.attention.temperature for member in trained["ssa"])
    for vanilla, ssa in zip(trained["vanilla"], trained["ssa"], strict=True):
        for name, values in vanilla.named_parameters():
            assert torch.equal(values, ssa.get_parameter(name))
        assert vanilla.measure([0, 1]) == ssa.measure([0, 1])
    assert not torch.equal(trained["ssa"][0].attention.query, lookup("ssa").attention.query)


def test_sequential_training_gives_the_same_numbers() -> None:
    one, other = (
        train_lookup(method="ssa", steps=10, batch=4, seeds=2, vectorized=each, **SMALL) for each in (True, False)
    )  # type: ignore[arg-type]
    assert [run["seed"] for run in one] == [0, 1]
    for a, b in zip(one, other, strict=True):
        assert a["mse"] == pytest.approx(b["mse"], rel=1e-9)
        torch.testing.assert_close(torch.tensor(a["tokens"]["norm"]), torch.tensor(b["tokens"]["norm"]))


def test_it_is_learned() -> None:
    before, after = (
        train_lookup(method="vanilla", steps=steps, batch=32, seeds=2, vectorized=True, **SMALL)  # type: ignore[arg-type]
        for steps in (1, 300)
    )
    for start, end in zip(before, after, strict=True):
        assert end["mse"] < 0.3 * start["mse"]
