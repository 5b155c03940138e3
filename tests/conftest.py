"""Small models and configs that tests share."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import hypothesis
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import ssa.command_line.cli  # noqa: F401  # the resolvers that the YAML files use
from ssa.config import Config, parse
from ssa.model.config import ModelConfig, RopeScaling, TemperatureConfig, Terms

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve the runs that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: faster, and equal in every process
ROOT = Path(__file__).parent.parent
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:  # as after nohup, or in the background of a script
        signal.signal(_number, _handler)
gc.disable()  # until all tests are imported, which is a third faster
hypothesis.settings.register_profile("busy", deadline=None)  # no test measures time
hypothesis.settings.load_profile("busy")
BOTH = Terms(token="shared", position="log")


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token caches of tests stay out of the user's, and are shared within a test session."""
    monkeypatch.setenv("SSA_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def model_config() -> Callable[..., ModelConfig]:
    """A function that makes a small `ModelConfig`: `ssa=True`, or a temperature's fields, and any model field."""

    def make(*, ssa: bool = False, **fields: Any) -> ModelConfig:
        if ssa:
            fields |= {"query": BOTH, "value": BOTH}
        temperature = {name: fields.pop(name) for name in TemperatureConfig.__dataclass_fields__ if name in fields}
        if isinstance(scaling := fields.get("rope_scaling"), dict):
            fields["rope_scaling"] = RopeScaling(**scaling)
        small = {"name": "test", "size": "test", "n_layer": 2, "n_head": 2, "d_model": 16, "max_positions": 64}
        return ModelConfig(**{**small, **fields}, temperature=TemperatureConfig(**{**temperature, "name": "test"}))

    return make


@pytest.fixture(scope="session")
def small_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real English, about 200 kB: the topics of Python's own help."""
    from pydoc_data.topics import topics

    path = tmp_path_factory.mktemp("text") / "topics.txt"
    path.write_text("\n\n".join(topics.values())[:200_000])
    return path


@pytest.fixture
def smoke(small_text: Path, tmp_path: Path) -> Callable[..., Config]:
    """A function that composes ``scale=smoke`` on a small text, without W&B, with overrides as typed."""

    def make(*overrides: str) -> Config:
        default = ["scale=smoke", "data=text", f"data.train={small_text}", "data.tokenizer=bpe-512", "logger=none"]
        values, folder = [], f"{tmp_path}/outputs"  # differs in each test
        for override in overrides:
            if override.startswith("output_dir="):
                folder = override.removeprefix("output_dir=")
            else:
                values.append(override)
        return parse({**_composed(*default, *values), "output_dir": folder})

    return make


@functools.cache
def _composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", list(overrides))
    return cast("dict[str, Any]", OmegaConf.to_container(composed, resolve=True))


@pytest.fixture
def fresh_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B without an account, in a working directory of its own, and started anew for each test."""
    forget_wandb()  # a test without this fixture may have started it
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield
    forget_wandb()


def forget_wandb() -> None:
    if wandb := sys.modules.get("wandb"):  # None: a test hides it
        wandb.teardown()


@pytest.fixture
def wandb_config(smoke: Callable[..., Config]) -> Callable[..., Config]:
    """A function that makes a config that logs to W&B; a short timeout, so that tests of it are short."""
    return lambda *overrides: smoke("logger=wandb", "logger.timeout_seconds=4", *overrides)


@pytest.fixture(scope="module")
def own_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The code of exported models is copied to a cache of the module's tests, and forgotten after them."""
    from transformers import dynamic_module_utils, utils

    cache, path = str(tmp_path_factory.mktemp("modules")), list(sys.path)
    with pytest.MonkeyPatch.context() as patch:
        for module in (dynamic_module_utils, utils):
            patch.setattr(module, "HF_MODULES_CACHE", cache)
        yield
    sys.path[:] = path
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]
