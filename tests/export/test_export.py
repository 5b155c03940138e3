"""Exported models, loaded with transformers' classes and with the exported code."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import programs
import pytest
import torch
import yaml
from conftest import ROOT
from torch import Tensor

from ssa.config import Config
from ssa.errors import UserError
from ssa.export import folder as writer
from ssa.export.folder import export, tokenizer_files
from ssa.model.config import ModelConfig
from ssa.model.transformer import Transformer
from ssa.pretrained.load import from_pretrained
from ssa.pretrained.remote_code import remote_code
from ssa.text.tokenization import Tokenizer, train_bpe
from ssa.training.train import train

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("own_modules")

RULES = sorted(path.stem for path in (ROOT / "conf" / "model" / "temperature").glob("*.yaml"))
STRETCH = "model.rope_scaling={factor:8.0,low_freq_factor:1.0,high_freq_factor:4.0,original_max_positions:32}"
BACKBONES = {
    "gpt2": ["model=gpt2"],
    "pythia": ["model=pythia"],
    "llama": ["model=llama", "model.n_kv_head=2"],
    "llama3": ["model=llama", "model.n_kv_head=1", "model.tie_embeddings=true", "model.head_dim=6", STRETCH],
}
SMALL = ["model.n_layer=2", "model.n_head=4", "model.d_model=32", "model.max_positions=64", "data.block_size=32"]
ACTING = ["model.temperature.yarn_factor=4.0"]
LENGTH, NEW = 12, 8
Trained = Callable[..., Path]


@pytest.fixture
def warnings_of_transformers(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    logger.removeHandler(caplog.handler)


@pytest.fixture(scope="session")
def bpe(small_text: Path) -> Tokenizer:
    return Tokenizer("bpe-300", train_bpe(iter([small_text.read_text()[:20_000]]), 300))


@pytest.fixture
def trained(smoke: Callable[..., Config], tmp_path: Path, bpe: Tokenizer) -> Trained:
    """A function that makes a run folder of a small model whose every weight is random and large."""

    def make(*overrides: str) -> Path:
        config = smoke(*SMALL, *overrides)
        model = Transformer(config.model, bpe.vocab_size, seed=None)
        generator = torch.Generator().manual_seed(1)
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.4)
        return write_run(tmp_path / "run", config, model, bpe)

    return make


def write_run(folder: Path, config: Config, model: Transformer, tokenizer: Tokenizer) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.plain()))
    (folder / "tokenizer.json").write_text(tokenizer.definition)
    contents = {"config": config.plain(), "model": model.state_dict(), "step": 7, "global_step": 7}
    torch.save(contents, folder / "checkpoints" / "best.ckpt")
    return folder


def model_of(run: Path) -> Transformer:
    return writer.load_run(run)[1]


def load(folder: Path, **settings: Any) -> Any:
    """With the remote code of the folder, if its config.json names some; every weight must be there."""
    own = "auto_map" in json.loads((folder / "config.json").read_text())
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=own, output_loading_info=True, **settings
    )
    assert not any(info.values()), info
    return model


def random_ids(*shape: int) -> Tensor:
    return torch.randint(1, 257, shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def continued(model: Transformer, ids: Tensor) -> Tensor:
    """Greedily, by the whole sequence again and again; the end of text, 0, does not end it."""
    for _ in range(NEW):
        logits = model(ids)[:, -1]
        ids = torch.cat((ids, logits.argmax(-1, keepdim=True)), dim=1)
    return ids


@torch.no_grad()
def generated(model: Any, ids: Tensor, mask: Tensor | None = None, **settings: Any) -> Tensor:
    mask = torch.ones_like(ids) if mask is None else mask
    never = {"eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, attention_mask=mask, max_new_tokens=NEW, **{"do_sample": False, **never, **settings})


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_vanilla_models_load_into_the_stock_classes(
    backbone: str, trained: Trained, tmp_path: Path, warnings_of_transformers: Callable[[], list[str]]
) -> None:
    run, folder = trained(*BACKBONES[backbone]), tmp_path / "exported"
    _, own = export(run, folder)
    model, ids, ours = load(folder), random_ids(2, LENGTH), model_of(run)
    assert not own
    assert type(model).__module__.startswith("transformers.models")
    assert not list(folder.glob("*.py"))
    assert model.dtype == torch.float32
    with torch.no_grad():
        close(model(ids).logits, ours(ids))
    assert torch.equal(generated(model, ids), continued(ours, ids))
    assert warnings_of_transformers() == []
    again = from_pretrained(str(folder))
    assert torch.equal(again.eval()(ids), ours(ids))


RULES_AND_BACKBONES = [
    *((rule, [*BACKBONES][number % len(BACKBONES)]) for number, rule in enumerate(RULES)),
    *(("ssa", backbone) for backbone in BACKBONES),
]


@pytest.mark.parametrize(("rule", "backbone"), dict.fromkeys(RULES_AND_BACKBONES))
@torch.no_grad()
def test_every_rule_loads_with_its_own_code(
    rule: str, backbone: str, trained: Trained, tmp_path: Path, warnings_of_transformers: Callable[[], list[str]]
) -> None:
    run = trained(*BACKBONES[backbone], f"model/temperature={rule}", *ACTING)
    folder, own = export(run, tmp_path / "exported", "ssa" if rule == "none" else "auto")
    model, ids, ours = load(folder), random_ids(2, LENGTH), model_of(run)
    assert own
    assert type(model).__module__.startswith("transformers_modules")
    assert torch.equal(model(ids).logits, ours(ids))
    expected = continued(ours, ids)
    assert torch.equal(generated(model, ids), expected)
    assert torch.equal(generated(model, ids, use_cache=False), expected)
    lengths = torch.tensor([LENGTH, 5])
    mask = (torch.arange(LENGTH) >= LENGTH - lengths[:, None]).long()
    padded = ids * mask
    close(model(padded, attention_mask=mask).logits[1, -5:], ours(ids[1:, -5:])[0])
    for settings in ({}, {"use_cache": False}):
        rows = generated(model, padded, mask, **settings)
        assert torch.equal(rows[0], expected[0])
        assert torch.equal(rows[1, -5 - NEW :], continued(ours, ids[1:, -5:])[0])
    assert warnings_of_transformers() == []


@pytest.fixture
def exported(trained: Trained, tmp_path: Path) -> Path:
    """A model with as much as there is: learned tables, gates, buffers, a tied head."""
    gate = "model.temperature.output={token:gate,position:none,multiplier:none}"
    return export(trained("model=gpt2", "model/temperature=frequency", gate), tmp_path / "exported")[0]


LOADED_ELSEWHERE = """
import sys
class NoPackage:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ssa", "lightning", "hydra", "datasets"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoPackage())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, results = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    torch.save(model(**tokenizer("The garden", return_tensors="pt")).logits, results)
assert "ssa" not in sys.modules
"""


@pytest.mark.slow
def test_it_loads_without_the_package(exported: Path, tmp_path: Path, bpe: Tokenizer) -> None:
    moved = tmp_path / "elsewhere" / "a-model.v2"
    shutil.copytree(exported, moved)
    command = [sys.executable, "-I", "-c", LOADED_ELSEWHERE, str(moved), str(tmp_path / "logits.pt")]
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids = torch.tensor(bpe.encode_batch(["The garden"]))
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model_of(tmp_path / "run")(ids).detach())


def test_the_exported_code_is_the_package_s() -> None:
    files = remote_code()
    assert {"modeling_ssa.py", "configuration_ssa.py", "temperature.py", "transformer.py"} <= files.keys()
    for name, source in files.items():
        compile(source, name, "exec")
        assert source.startswith("# Generated from the package ssa ")
        assert "from ssa" not in source
    body = files["temperature.py"].partition("\n")[2]
    assert body == (ROOT / "ssa" / "model" / "temperature.py").read_text().replace("from ssa.model.", "from .")


def test_a_loaded_model_trains_saves_and_loads_again(exported: Path, tmp_path: Path) -> None:
    model, ids = load(exported), random_ids(2, LENGTH)
    logits = model(ids).logits
    output = model.train()(ids, labels=ids)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    shifted = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    close(output.loss, shifted)
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert torch.equal(again(ids).logits, logits)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert torch.equal(from_pretrained(str(exported)).eval()(ids), logits)


def test_bfloat16_keeps_temperatures_in_float32(exported: Path) -> None:
    model, ids = load(exported, dtype=torch.bfloat16), random_ids(2, LENGTH)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    precise = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert precise == {name for name in dtypes if "temperature" in name or "log_frequency" in name}
    assert model(ids).logits.dtype == torch.bfloat16


def test_new_weights_are_drawn_as_in_training(exported: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(exported, trust_remote_code=True)

    def new(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True).model.state_dict()

    weights, again, other = new(3), new(3), new(4)
    fresh = Transformer(ModelConfig.from_plain(config.ssa), config.vocab_size).state_dict()
    for name, tensor in fresh.items():
        assert torch.equal(weights[name], again[name])
        drawn = not torch.equal(weights[name], other[name])
        assert drawn == (tensor.std() > 0)
        assert weights[name].std().item() == pytest.approx(tensor.std().item(), rel=0.4)
        assert drawn or torch.equal(weights[name], tensor)


def test_missing_weights_are_refused(exported: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(exported / "model.safetensors")
    del tensors["model.blocks.1.attention.temperature.output.terms.token.weight"]
    save_file(tensors, exported / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing.*blocks\.1\.attention\.temperature\.output"):
        transformers.AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)


def test_unsupported_arguments_are_refused(exported: Path) -> None:
    model, ids = load(exported), random_ids(1, 4)
    for arguments, message in (
        ({"position_ids": torch.arange(4)[None]}, "position_ids: not supported"),
        ({"output_attentions": True}, "output_attentions: not supported"),
        ({"attention_mask": torch.tensor([[1, 1, 0, 1]])}, "padding between tokens"),
        ({"attention_mask": torch.ones(1, 3)}, r"has shape \(1, 3\); valid: \(batch, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model(ids, **arguments)
    with pytest.raises(ValueError, match="StaticCache has a fixed size"):
        generated(model, ids, cache_implementation="static")


def test_the_interface_used_by_tools(exported: Path) -> None:
    model, ids = load(exported), random_ids(2, 6)
    full = model(ids).logits
    assert torch.equal(model(ids, logits_to_keep=2).logits, full[:, -2:])
    assert torch.equal(model(ids, attention_mask=torch.ones_like(ids), return_dict=False)[0], full)
    right = torch.tensor([[1, 1, 1, 1, 0, 0]] * 2)
    close(model(ids * right, attention_mask=right).logits[:, :4], full[:, :4])
    assert generated(model, ids, do_sample=True, top_p=0.9).shape == (2, 6 + NEW)
    assert generated(model, ids, num_beams=2).shape == (2, 6 + NEW)
    assert model(ids, use_cache=False).past_key_values is None
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (32, 2, 4)
    assert (config.max_position_embeddings, config.tie_word_embeddings) == (64, True)
    assert model.generation_config.eos_token_id == 0


TEXTS = ["The garden, 3 × (of) forking\n\n  paths…", "def f(x):\n\treturn 'é'", " leading", ""]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_tokenizer_gives_our_ids(backbone: str, trained: Trained, tmp_path: Path, bpe: Tokenizer) -> None:
    folder, _ = export(trained(*BACKBONES[backbone]), tmp_path / "exported")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer(TEXTS)["input_ids"] == bpe.encode_batch(TEXTS)
    assert tokenizer.decode(bpe.encode_batch(TEXTS)[0]) == TEXTS[0]
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == bpe.end_of_text
    assert tokenizer.model_max_length == 64
    batch = tokenizer(["a longer text", "a"], padding=True, return_tensors="pt")
    assert batch.keys() == {"input_ids", "attention_mask"}
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]


def test_tokens_added_by_a_tokenizer_are_not_exported(bpe: Tokenizer, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Inner
    from tokenizers import processors

    inner = Inner.from_str(bpe.definition)
    end = ("<|endoftext|>", bpe.end_of_text)
    adds = processors.TemplateProcessing(single=f"{end[0]} $A", special_tokens=[end])
    for processor in (adds, processors.Sequence([processors.ByteLevel(trim_offsets=False), adds])):
        inner.post_processor = processor
        assert inner.encode("a").ids[0] == bpe.end_of_text
        for name, text in tokenizer_files(Tokenizer("adding", inner.to_str()), 64).items():
            (tmp_path / name).write_text(text)
        assert transformers.AutoTokenizer.from_pretrained(tmp_path)(TEXTS)["input_ids"] == bpe.encode_batch(TEXTS)


@pytest.mark.parametrize(
    ("overrides", "fields"),
    [
        (["model=gpt2", "model.activation=silu", "model.norm=rms"], ["norm=rms"]),
        (["model=llama", "model.parallel_residual=true"], ["LlamaForCausalLM", "model.parallel_residual=True"]),
    ],
)
def test_architectures_without_a_transformers_class(
    overrides: list[str], fields: list[str], trained: Trained, tmp_path: Path
) -> None:
    run = trained(*overrides)
    with pytest.raises(UserError, match="as=ssa") as error:
        export(run, tmp_path / "exported")
    assert all(field in str(error.value) for field in fields), error.value
    assert not (tmp_path / "exported").exists()
    ids = random_ids(1, LENGTH)
    assert torch.equal(load(export(run, tmp_path / "exported", "ssa")[0])(ids).logits, model_of(run)(ids))


def test_nothing_is_overwritten_and_nothing_half_written_stays(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, used = trained("model=ssa_gpt2"), tmp_path / "used"
    used.mkdir()
    (used / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"to=.*used: exists; valid: a new folder, or an empty one"):
        export(run, used)
    for wrong, reason in ((used / "notes.txt" / "below", "Not a directory"), (tmp_path / ("x" * 300), "too long")):
        with pytest.raises(UserError, match=f"cannot be written .*{reason}"):
            export(run, wrong)
    (tmp_path / "empty").mkdir()
    folder, _ = export(run, tmp_path / "empty")
    assert {path.stat().st_mode for path in folder.iterdir()} == {(used / "notes.txt").stat().st_mode}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "save_file", full)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"to=.*new: cannot be written \(No space left on device\)"):
        export(run, tmp_path / "new")
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_is_not_a_run_is_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        export(tmp_path / "nothing", tmp_path / "exported")
    checkpoint = trained("model=gpt2") / "checkpoints" / "best.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        export(tmp_path / "run", tmp_path / "exported")
    checkpoint.unlink()
    with pytest.raises(UserError, match=r"no .*best\.ckpt"):
        export(tmp_path / "run", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.slow
def test_from_the_command_line_after_a_real_run(smoke: Callable[..., Config], tmp_path: Path) -> None:
    steps = ["trainer.steps=2", "trainer.eval_every=1", "optim.warmup_steps=1", "data.max_eval_tokens=256"]
    config = smoke(*steps, "trainer.batch_size=2", "trainer.micro_batch_size=2", "model=ssa_llama", *SMALL)
    train(config)
    run, folder = Path(config.output_dir) / config.experiment / config.run_id, tmp_path / "exported"
    command = ["export.py", f"run={run}", f"to={folder}"]
    with programs.start(*command, cwd=tmp_path) as done:
        assert done.ended() == 0, done.err
    size, *lines = done.out.splitlines()
    assert size.startswith(f"{folder}: ")
    assert size.endswith(" MB")
    found: dict[str, Any] = {}
    exec("from transformers import AutoModelForCausalLM, AutoTokenizer\n" + "\n".join(lines), found)
    ids = found["tokenizer"]("The garden", return_tensors="pt")
    ours = model_of(run)(ids["input_ids"])
    assert torch.equal(found["model"](**ids).logits, ours)
    card = (folder / "README.md").read_text()
    assert config.run_id in card
    assert "| validation |" in card
    assert "trust_remote_code=True" in card
    again = programs.launch(*command, cwd=tmp_path)
    assert (again.code, again.out) == (2, "")
    assert again.err == f"error: to={folder}: exists; valid: a new folder, or an empty one\n"
