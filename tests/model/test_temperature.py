"""Every temperature against its equation, written out scalar by scalar; its gradients; its parameter count."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import ROOT
from torch import Tensor

from ssa.model.config import PROJECTIONS, SLOTS, TemperatureConfig, Terms
from ssa.model.temperature import Temperature, build_temperatures, scale
from ssa.model.temperature_rules import TERMS, Shape, Tokens

B, H, T, D, WIDTH = 2, 3, 7, 5, 11
SHAPE = Shape(n_head=H, head_dim=D, d_model=WIDTH)
every_term = pytest.mark.parametrize(("slot", "name"), [(term.slot, name) for name, term in TERMS.items()])
every_per = pytest.mark.parametrize("per", ["head", "layer"])


def build(per: str = "head", settings: dict | None = None, **terms: str) -> Temperature:
    config = TemperatureConfig(per=per, **({"mlp_hidden": 4} if settings is None else settings))
    built = Temperature(Terms(**terms), SHAPE, config)
    built.reset_parameters(torch.Generator().manual_seed(0))
    return built


def randomized(temperature: Temperature, seed: int = 0) -> Temperature:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in temperature.parameters():
            parameter.normal_(0, 1, generator=generator)
    return temperature


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tokens]:
    """Features and tokens; the second sequence is two documents, of 3 and 4 tokens."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(B, T, H, D, generator=generator, dtype=dtype)
    hidden = torch.randn(B, T, WIDTH, generator=generator, dtype=dtype)
    visible_keys = torch.tensor([range(1, T + 1), [1, 2, 3, 1, 2, 3, 4]])
    return features, Tokens(hidden, visible_keys, torch.randn(B, T, generator=generator, dtype=dtype))


# The equations again, one number at a time, from lists of Python floats.  Arguments: the term's parameters by name, the
# head (0 with one temperature a layer), the features of all heads at the token, its hidden state, n, its z.

Numbers = list[float]


def dot(a: Numbers, b: Numbers) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def gelu(values: Numbers) -> Numbers:
    return [0.5 * x * (1 + math.erf(x / math.sqrt(2))) for x in values]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def shared(p, head, features, hidden, n, z, per) -> float:
    heads = [head] if per == "head" else range(H)
    return math.tanh(sum(dot(p["weight"][h], gelu(features[h])) for h in heads))


class Stated(NamedTuple):
    """What is stated about a term: its equation, and how many parameters it has for each head and for each layer."""

    equation: Callable[..., float] | None
    counts: tuple[int, int] = (H, 1)


STATED: dict[str, Stated] = {
    "shared": Stated(shared, (H * D, H * D)),
    "mlp": Stated(
        lambda p, h, f, x, n, z, per: math.tanh(dot(p["weight"][h], gelu([dot(row, x) for row in p["first"]]))),
        (4 * WIDTH + H * 4, 4 * WIDTH + 4),
    ),
    "frequency": Stated(lambda p, h, f, x, n, z, per: math.tanh(p["slope"][h] * z + p["bias"][h]), (2 * H, 2)),
    "gate": Stated(lambda p, h, f, x, n, z, per: sigmoid(dot(p["weight"][h], x)) - 1, (H * WIDTH, WIDTH)),
    "tanh_gate": Stated(lambda p, h, f, x, n, z, per: math.tanh(dot(p["weight"][h], x)), (H * WIDTH, WIDTH)),
    "log": Stated(lambda p, h, f, x, n, z, per: sigmoid(p["alpha"][h]) * math.log(n)),
    "released": Stated(lambda p, h, f, x, n, z, per: math.exp(-math.exp(p["beta"][h])) * math.log(n)),
    "released_linear": Stated(lambda p, h, f, x, n, z, per: p["beta"][h] * math.log(n)),
    "ssmax": Stated(lambda p, h, f, x, n, z, per: p["s"][h] * math.log(n) - 1),
    "constant": Stated(lambda p, h, f, x, n, z, per: p["weight"][h] - 1),
    "yarn": Stated(lambda p, h, f, x, n, z, per: 0.1 * math.log(2), (0, 0)),
    "rms_norm": Stated(None, (D, D)),  # a vector: test_rms_norm_is_the_norm_of_each_head
}


@every_per
@every_term
def test_equals_the_equation_scalar_by_scalar(slot: str, name: str, per: str) -> None:
    equation = STATED[name].equation
    if equation is None:
        pytest.skip("not a scalar")
    tau = randomized(build(per, **{slot: name}))
    features, tokens = batch()
    parameters = {key: value.tolist() for key, value in tau.terms[slot].named_parameters()}
    heads = H if per == "head" else 1
    got = tau(features, tokens).expand(B, T, heads, 1)
    assert got.dtype == torch.float32
    for b in range(B):
        for h in range(heads):
            for i in range(T):
                at = (features[b, i].tolist(), tokens.hidden[b, i].tolist())
                n, z = tokens.visible_keys[b, i].item(), tokens.log_frequency[b, i].item()
                want = 1 + equation(parameters, h, *at, n, z, per)
                assert got[b, i, h, 0].item() == pytest.approx(want, abs=2e-6)


def test_rms_norm_is_the_norm_of_each_head() -> None:
    tau = randomized(build(multiplier="rms_norm"))
    features, tokens = batch()
    want = F.rms_norm(features, (D,), tau.terms["multiplier"].weight, eps=1e-6)
    torch.testing.assert_close(scale(features, tau(features, tokens)), want)


def test_the_sum_of_the_paper() -> None:
    both = randomized(build(token="shared", position="log"))
    features, tokens = batch()
    terms = both.terms["token"](features, tokens) + both.terms["position"](features, tokens)
    torch.testing.assert_close(both(features, tokens), 1 + terms)


def test_a_multiplier_scales_what_the_other_terms_read() -> None:
    tau = randomized(build(multiplier="rms_norm", token="shared", position="log"))
    features, tokens = batch()
    multiplier = tau.terms["multiplier"](features, tokens)
    inner = 1 + tau.terms["token"](features * multiplier, tokens) + tau.terms["position"](features, tokens)
    torch.testing.assert_close(tau(features, tokens), multiplier * inner)


@every_per
@every_term
def test_gradients_are_right_in_float64(slot: str, name: str, per: str) -> None:
    tau = randomized(build(per, **{slot: name})).double()
    features, tokens = batch(torch.float64)
    features.requires_grad_()
    tokens.hidden.requires_grad_()

    def call(features: Tensor, hidden: Tensor, *_: Tensor) -> Tensor:
        return scale(features, tau(features, tokens._replace(hidden=hidden)))

    assert call(features, tokens.hidden).dtype == torch.float64
    assert torch.autograd.gradcheck(call, (features, tokens.hidden, *tau.parameters()))


@every_term
def test_its_value_moves_with_each_of_its_parameters(slot: str, name: str) -> None:
    tau = randomized(build(**{slot: name}))
    features, tokens = batch()
    before = tau(features, tokens)
    for parameter in tau.parameters():
        with torch.no_grad():
            parameter.add_(0.3)
        after = tau(features, tokens)
        assert not torch.allclose(before, after)
        before = after


@every_term
def test_parameter_counts_are_those_stated(slot: str, name: str) -> None:
    for per, want in zip(("head", "layer"), STATED[name].counts, strict=True):
        assert sum(parameter.numel() for parameter in build(per, **{slot: name}).parameters()) == want


@every_term
def test_starts_at_the_identity_or_says_that_it_does_not(slot: str, name: str) -> None:
    tokens = Tokens(torch.randn(1, 1024, WIDTH), torch.arange(1, 1025), torch.randn(1, 1024))
    for settings in (
        {"alpha_init": -10.0, "beta_init": 3.0, "yarn_factor": 1.0},
        {"alpha_init": -4.5, "beta_init": 1.5, "yarn_factor": 2.0, "slope_init": 0.5},
    ):
        tau = build(**{slot: name}, settings=settings)
        distance = (tau(torch.randn(1, 1024, H, D), tokens) - 1).abs().max().item()
        assert (distance < 1e-3) == tau.starts_at_identity


def test_the_position_term_is_bounded() -> None:
    tau = build(position="log", settings={"alpha_init": -10.0})
    assert tau.largest_position_term(2.0, 1024) == pytest.approx(sigmoid(-8.0) * math.log(1024))
    assert build(token="shared").largest_position_term(2.0, 1024) is None


def test_every_setting_is_of_a_term() -> None:
    everything = TemperatureConfig().unused_settings
    assert everything == set(TemperatureConfig().plain()) - {"name", "query", "key", "value", "output", "per"}
    used = TemperatureConfig(query=Terms(token="mlp", position="log"))
    assert everything - used.unused_settings == {"mlp_hidden", "alpha_init"}


@pytest.mark.parametrize("terms", [Terms(token="own"), Terms(token="log"), Terms(multiplier="shared")], ids=str)
def test_a_term_that_the_slot_does_not_have_is_refused(terms: Terms) -> None:
    with pytest.raises(
        ValueError, match=r"valid: none, (shared, mlp, frequency, gate, tanh_gate|constant, yarn, rms_norm)$"
    ):
        Temperature(terms, SHAPE, TemperatureConfig())


@every_term
def test_every_parameter_is_reset(slot: str, name: str) -> None:
    tau = build(**{slot: name})
    start = {key: tensor.clone() for key, tensor in tau.state_dict().items()}
    randomized(tau).reset_parameters(torch.Generator().manual_seed(0))
    assert all(torch.equal(tensor, start[key]) for key, tensor in tau.state_dict().items())


def test_the_paper_starts_at_the_identity_within_the_stated_tolerance() -> None:
    tau = build(token="shared", position="log")
    tokens = Tokens(torch.zeros(1, 1024, WIDTH), torch.arange(1, 1025))
    values = tau(torch.randn(1, 1024, H, D), tokens)
    assert values[:, 0].eq(1).all()  # n = 1: log n = 0, and w = 0
    assert 1.07 < values.max().item() < 1.077 + 1e-3


def test_is_exactly_one_at_the_identity() -> None:
    tau = build(token="shared", position="log", settings={"alpha_init": -1e9})
    assert tau(*batch()).eq(1).all()


@every_per
@pytest.mark.parametrize("name", ["shared", "mlp"])
def test_token_terms_learn_from_their_start(name: str, per: str) -> None:
    tau = build(per, token=name)
    tau(*batch()).sum().backward()
    assert tau.terms["token"].weight.grad.abs().min() > 0


def test_stays_float32_under_autocast_and_resolves_what_bf16_cannot() -> None:
    tau = build(token="shared", position="log")
    features = torch.randn(1, 2048, H, D, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        values = tau(features, Tokens(torch.zeros(1, 2048, WIDTH), torch.arange(1, 2049)))
    assert values.dtype == torch.float32
    assert values[0, :, 0].unique().numel() == 2048
    assert values.bfloat16()[0, :, 0].unique().numel() < 20
    assert scale(features, values).dtype == torch.bfloat16


@every_term
def test_every_term_is_float32_under_autocast(slot: str, name: str) -> None:
    features, tokens = batch()
    with torch.autocast("cpu", torch.bfloat16):
        values = build(**{slot: name})(features.bfloat16(), tokens._replace(hidden=tokens.hidden.bfloat16()))
    assert values.dtype == torch.float32


def test_scaling_multiplies_in_float32() -> None:
    features = torch.full((1, 1, 1, 1), 3.0, dtype=torch.bfloat16)
    tau = torch.full((1, 1, 1, 1), 1.005)  # 1.0 in bf16, but 3 x 1.005 = 3.015 rounds to 3.015625
    assert scale(features, tau).item() == pytest.approx(3.015625)


def test_only_what_is_asked_for_is_built() -> None:
    assert not build_temperatures(TemperatureConfig(), SHAPE)
    one = build_temperatures(TemperatureConfig(key=Terms(position="log")), SHAPE)
    assert list(one) == ["key"]
    assert [tuple(p.shape) for p in one.parameters()] == [(H,)]
    assert not build_temperatures(TemperatureConfig(query=Terms()), SHAPE)


def test_keys_and_values_have_their_own_number_of_heads() -> None:
    log = Terms(position="log")
    built = build_temperatures(TemperatureConfig(query=log, key=log, value=log, output=log), SHAPE, n_kv_head=1)
    assert {name: sum(p.numel() for p in tau.parameters()) for name, tau in built.items()} == {
        "query": H,
        "key": 1,
        "value": 1,
        "output": H,
    }


@every_term
def test_every_term_has_a_rule(slot: str, name: str) -> None:
    """The command line refuses terms that no file of a rule has."""
    rules = [yaml.safe_load(file.read_text()) for file in (ROOT / "conf" / "model" / "temperature").glob("*.yaml")]
    assert slot in SLOTS
    assert any((rule.get(projection) or {}).get(slot) == name for rule in rules for projection in PROJECTIONS)
