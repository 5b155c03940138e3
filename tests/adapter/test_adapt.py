"""Adapted models: the base model's function, visible keys, every rule, and what is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architectures import VOCABULARY, tiny_model
from judgment import move
from pretrained_folders import small, write_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

import ssa
from ssa.adapter.features import FeatureIndex
from ssa.adapter.layer import LayerTemperatures, adapted_layers
from ssa.errors import UserError
from ssa.pretrained.families import FAMILIES
from ssa.pretrained.load import load_pretrained
from ssa.rule_names import rule, rule_names

TYPES = [family.model_type for family in FAMILIES]
RULES = [name for name in rule_names() if name != "none"]
COUNTS = torch.arange(600) + 1


def ids(length: int = 17, rows: int = 2, seed: int = 1) -> Tensor:
    return torch.randint(3, 100, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: nn.Module, tokens: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(tokens, use_cache=False, **options).logits
    return found


def counted(model: Any, tokens: Tensor, **options: Any) -> list[list[Tensor]]:
    """The visible keys of each layer, in all passes."""
    seen: list[list[Tensor]] = [[] for _ in adapted_layers(model)]
    handles = []
    for number, layer in enumerate(adapted_layers(model).values()):
        temperature = next(iter(layer.values()))
        keep = seen[number].append
        handles.append(temperature.register_forward_pre_hook(lambda _, args, keep=keep: keep(args[1].visible_keys)))
    with torch.no_grad():
        model(tokens, **options)
    for handle in handles:
        handle.remove()
    return seen


def on_off(model: Any) -> tuple[Tensor, Tensor]:
    with ssa.disable(model):
        off = logits(model, ids())
    return logits(model, ids()), off


def test_the_base_model_is_under_it() -> None:
    model = tiny_model("qwen3")
    base, trained = logits(model, ids()), {name for name, one in model.named_parameters() if one.requires_grad}
    assert ssa.adapt(model, "token") is model
    assert torch.equal(logits(model, ids()), base)
    assert {name for name, one in model.named_parameters() if one.requires_grad} == {
        f"{name}.temperature.{slot}.terms.token.weight" for name in adapted_layers(model) for slot in ("query", "value")
    }
    move(model)
    on, off = on_off(model)
    assert torch.equal(off, base)
    assert not torch.allclose(on, base)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other, ids()), on)
        ssa.unload(other)
        assert torch.equal(logits(other, ids()), base)
    assert torch.equal(logits(model, ids()), on), "a copy is its own"
    ssa.unload(model)
    assert torch.equal(logits(model, ids()), base)
    assert {name for name, one in model.named_parameters() if one.requires_grad} == trained
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("name", RULES)
def test_it_is_this_projects_transformer(model_type: str, name: str, tmp_path: Path) -> None:
    """For the families that both know, each rule with the same temperatures."""
    write_model(tmp_path, model_type)
    own = load_pretrained(small(model_type, rule(name).starting(pretrained=True)), str(tmp_path), seed=3)
    own.set_token_counts(COUNTS)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    ssa.adapt(model, name, seed=3, token_counts=COUNTS if name == "frequency" else None)
    layers = list(adapted_layers(model).values())
    for block, layer in zip(own.blocks, layers, strict=True):
        theirs = block.attention.temperature.state_dict()
        assert theirs.keys() == layer.state_dict().keys()
        assert all(torch.equal(tensor, layer.state_dict()[key]) for key, tensor in theirs.items()), "equal start values"
    move(model)
    for block, layer in zip(own.blocks, layers, strict=True):
        block.attention.temperature.load_state_dict(layer.state_dict())
    torch.testing.assert_close(logits(model, ids()), own(ids()).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", TYPES)
def test_training_is_the_same(model_type: str, tmp_path: Path) -> None:
    write_model(tmp_path, model_type)
    own = load_pretrained(small(model_type, rule("ssa").starting(pretrained=True)), str(tmp_path), seed=0)
    model = ssa.adapt(AutoModelForCausalLM.from_pretrained(tmp_path), train="all")
    losses: list[list[float]] = []
    for one in (own, model):
        optimizer, found = torch.optim.AdamW(one.parameters(), 1e-3), []
        for step in range(20):
            tokens = ids(seed=step)
            output = one(tokens)
            scores = output if isinstance(output, Tensor) else output.logits
            loss = nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        losses.append(found)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("name", RULES)
def test_generation_with_a_cache(name: str) -> None:
    model = tiny_model("mistral")
    counts = torch.arange(VOCABULARY) + 1 if name == "frequency" else None
    move(ssa.adapt(model, name, token_counts=counts))
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(ids())
    without = model.generate(ids(), attention_mask=mask, use_cache=False, **options)
    assert torch.equal(model.generate(ids(), attention_mask=mask, **options), without)
    static = model.generate(ids(), attention_mask=mask, cache_implementation="static", **options)
    assert torch.equal(static, without)
    beams = [model.generate(ids(), attention_mask=mask, num_beams=3, use_cache=use, **options) for use in (True, False)]
    assert torch.equal(*beams)


def test_visible_keys() -> None:
    model = ssa.adapt(tiny_model("mistral"))  # a window of 6 tokens
    steps = torch.arange(1, 18)
    assert torch.equal(counted(model, ids(), use_cache=False)[0][0].expand(2, -1)[0], steps.clamp(max=6))
    model = ssa.adapt(tiny_model("llama"))
    assert torch.equal(counted(model, ids(), use_cache=False)[1][0].flatten(), steps)
    mask = (torch.arange(17) >= torch.tensor([[0], [5]])).long()
    padded = counted(model, ids(), attention_mask=mask, use_cache=False)[0][0]
    assert torch.equal(padded, torch.stack([steps, (steps - 5).clamp(min=1)]))
    positions = torch.cat([torch.arange(7), torch.arange(10)])[None]
    packed = counted(model, ids(rows=1), position_ids=positions, use_cache=False)[0][0]
    assert torch.equal(packed, positions + 1)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_visible_keys_with_a_cache(kind: str) -> None:
    model = ssa.adapt(tiny_model("llama"))
    cache = DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(model.config, max_cache_len=32)
    option = "cache" if transformers.__version__ >= "5.24" else "past_key_values"
    first = counted(model, ids(5), **{option: cache})[0][0]
    assert torch.equal(first.expand(2, -1)[1], torch.arange(1, 6))
    assert counted(model, ids(1), **{option: cache})[1][0].unique().tolist() == [6]
    assert torch.equal(counted(model, ids(3), **{option: cache})[0][0].expand(2, -1)[0], torch.tensor([7, 8, 9]))


def test_packed_rows_are_rows_alone() -> None:
    model = ssa.adapt(tiny_model("qwen2"))
    move(model)
    row = ids(rows=1)
    positions = torch.cat([torch.arange(7), torch.arange(10)])[None]
    together = logits(model, row, position_ids=positions)
    torch.testing.assert_close(together[:, 7:], logits(model, row[:, 7:]), rtol=1e-5, atol=1e-5)


def test_a_hybrid_model_says_how_many_layers(capsys) -> None:
    model = ssa.adapt(tiny_model("jamba"))
    ssa.print_trainable_parameters(model)
    printed = capsys.readouterr().out
    ours = sum(one.numel() for layer in adapted_layers(model).values() for one in layer.parameters())
    assert "temperatures (ssa): " in printed
    assert f"{ours:,} in 1 of 2 layers" in printed
    assert printed.startswith(f"trainable params: {ours:,} || all params: ")


def test_latent_attention_without_values() -> None:
    model = tiny_model("deepseek_v3")
    with pytest.raises(UserError, match="its cache holds what kv_b_proj computes the value from"):
        ssa.adapt(model)
    assert model.config._attn_implementation == "sdpa"
    assert not adapted_layers(model)
    move(ssa.adapt(model, value=None))
    on, off = on_off(model)
    assert not torch.allclose(on, off)


def test_settings_of_a_rule() -> None:
    model = ssa.adapt(tiny_model("llama"), "ssa", per="layer", alpha_init=-3.0)
    alphas = {name: one for name, one in model.named_parameters() if name.endswith("alpha")}
    assert {one.shape for one in alphas.values()} == {(1,)}
    assert {one.item() for one in alphas.values()} == {-3.0}


def test_bf16() -> None:
    model = ssa.adapt(tiny_model("llama", dtype=torch.bfloat16))
    assert {one.dtype for layer in adapted_layers(model).values() for one in layer.parameters()} == {torch.float32}
    model(ids(), labels=ids()).loss.backward()
    assert all(one.grad is not None for layer in adapted_layers(model).values() for one in layer.parameters())


def test_activation_checkpointing_has_the_same_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = ssa.adapt(tiny_model("llama"))
        move(model)
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(ids(), labels=ids(), use_cache=False).loss.backward()
        gradients.append([one.grad for layer in adapted_layers(model).values() for one in layer.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.slow
def test_compilation() -> None:
    model = ssa.adapt(tiny_model("llama"))
    move(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(logits(compiled, ids()), logits(model, ids()))


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no model": (lambda: nn.Linear(2, 2), {}, "Linear is no model of transformers; valid: a causal"),
    "no head": (lambda: tiny_model("llama").model, {}, "LlamaModel is no causal language model; valid: a class"),
    "bidirectional": (lambda: _bert(), {}, "BertLMHeadModel is not causal as it is configured"),
    "meta": (lambda: tiny_model("llama").to("meta"), {}, "LlamaForCausalLM is on the meta device; valid: a model with"),
    "twice": (lambda: ssa.adapt(tiny_model("llama")), {}, r"has temperatures already; ssa\.unload\(model\) removes"),
    "rule": (lambda: tiny_model("llama"), {"temperature": "sssa"}, "temperature=sssa: not one of .* valid: constant,"),
    "no scaling": (lambda: tiny_model("llama"), {"temperature": "none"}, "temperature=none: scales nothing"),
    "train": (lambda: tiny_model("llama"), {"train": "lora"}, "train=lora: valid: temperature, all"),
    "setting": (lambda: tiny_model("llama"), {"alpha": 1}, "alpha"),
    "unused": (
        lambda: tiny_model("llama"),
        {"alpha_init": 1.0, "temperature": "constant"},
        "no term of .*constant reads",
    ),
    "per": (lambda: tiny_model("llama"), {"per": "row"}, "per=row"),
    "type": (lambda: tiny_model("llama"), {"temperature": None}, "temperature=None: not one of the rules"),
    "seed": (lambda: tiny_model("llama"), {"seed": None}, "seed=None: valid: a whole number"),
    "counts": (lambda: tiny_model("llama"), {"temperature": "frequency"}, "token_counts=None: temperature=frequency"),
    "no counts": (
        lambda: tiny_model("llama"),
        {"temperature": "frequency", "token_counts": torch.zeros(VOCABULARY)},
        "token_counts: valid: finite numbers, none below 0, not all 0",
    ),
    "vain counts": (lambda: tiny_model("llama"), {"token_counts": COUNTS}, "token_counts: temperature=ssa does not"),
    "interface": (lambda: tiny_model("falcon"), {}, "FalconForCausalLM has no attention that goes through"),
    "no attention": (lambda: tiny_model("mamba"), {}, "MambaForCausalLM has no attention that goes through"),
    "normalized": (lambda: tiny_model("qwen3"), {"temperature": "qk_norm"}, r"normalizes its query already \(q_norm\)"),
    "flex": (lambda: _flex(), {}, "attn_implementation=flex_attention: .*valid: sdpa, eager"),
}


def _bert() -> Any:
    return tiny_model("bert").__class__(transformers.BertConfig(hidden_size=32, num_attention_heads=4)).eval()


def _flex() -> Any:
    model = tiny_model("llama")
    model.config._attn_implementation = "flex_attention"
    return model


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    make, arguments, message = BAD[case]
    model = make()
    with pytest.raises(UserError, match=message) as caught:
        ssa.adapt(model, **arguments)
    assert "\n" not in str(caught.value)
    if case not in ("twice", "no model"):
        assert not adapted_layers(model)


def test_what_changes_after_it_is_noticed() -> None:
    model = ssa.adapt(tiny_model("llama"))
    model.set_attn_implementation("eager")
    with pytest.raises(UserError, match=r"its attn_implementation was changed after .*; valid: set it before"):
        logits(model, ids())
    ssa.unload(model)
    assert model.config._attn_implementation == "eager"


def test_frequencies_need_token_ids() -> None:
    model = ssa.adapt(tiny_model("llama"), "frequency", token_counts=torch.ones(VOCABULARY))
    embedded = model.get_input_embeddings()(ids())
    with pytest.raises(UserError, match="temperature=frequency reads the ids of the tokens"):
        model(inputs_embeds=embedded, use_cache=False)
    model.train()
    model.gradient_checkpointing_enable()
    with pytest.raises(UserError, match="no activation checkpointing"):
        model(ids(), labels=ids(), use_cache=False).loss.backward()


def test_experts_whose_rounding_depends_on_the_batch() -> None:
    config = tiny_model("mixtral").config
    config.hidden_size, config.intermediate_size, config.head_dim = 256, 512, 64
    torch.manual_seed(0)
    assert adapted_layers(ssa.adapt(AutoModelForCausalLM.from_config(config)))


def test_eager_attention_comes_back() -> None:
    model = tiny_model("llama")
    model.config._attn_implementation = "eager"
    ssa.adapt(model)
    assert model.config._attn_implementation == "ssa_eager"
    ssa.unload(model)
    assert model.config._attn_implementation == "eager"


def test_an_interrupted_call_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, attach, calls = tiny_model("llama"), LayerTemperatures.attach, []

    def interrupted(layer: LayerTemperatures, attention: nn.Module) -> None:
        calls.append(attention)
        if len(calls) == 2:
            raise KeyboardInterrupt
        attach(layer, attention)

    base = logits(model, ids())
    monkeypatch.setattr(LayerTemperatures, "attach", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ssa.adapt(model)
    monkeypatch.undo()
    assert not adapted_layers(model)
    assert torch.equal(logits(ssa.adapt(model, "token"), ids()), base)


def test_nothing_to_remove() -> None:
    with pytest.raises(UserError, match=r"has no temperatures; ssa\.adapt\(model\) adds them"):
        ssa.unload(tiny_model("llama"))


@pytest.mark.parametrize(
    "indices",
    [[[0, 1], [2, 3], [4, 5]], [[4, 5], [6, 7], [8, 9]], [[1, 2], [5, 6], [9, 10]], [[3, 1], [0, 2], [11, 7]]],
    ids=["whole", "fused", "interleaved", "any"],
)
def test_features(indices: list[list[int]]) -> None:
    features, temperature = torch.randn(2, 5, 12), torch.rand(2, 5, 3, 1)
    index = FeatureIndex(3, 2, 1, tuple(one for head in indices for one in head))
    assert torch.equal(index.select(features), features[..., torch.tensor(indices)])
    expected = features.clone()
    for head, places in enumerate(indices):
        expected[..., places] *= temperature[:, :, head]
    assert torch.equal(index.scale(features, temperature), expected)
