"""A causal language model of transformers in this project's own training, evaluation and generation (``model=hf``)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from ssa.adapter import probe
from ssa.adapter.adapt import adaptation, add_temperatures
from ssa.adapter.config_json import config_of
from ssa.adapter.files import CONFIG, load_temperatures
from ssa.adapter.layer import LayerTemperatures, TokenFrequencies, adapted_layers
from ssa.adapter.statistics import attention_statistics, observing
from ssa.errors import UserError, first_line
from ssa.model.attention import Observer
from ssa.model.config import ModelConfig
from ssa.model.language_model import LanguageModel
from ssa.model.loss import Reduction
from ssa.model.temperature import Temperature

_SHOWN = 3  # tensors named in an error message


class HFCache:
    """Whatever caches a model of transformers returns, by the names of its arguments, and their length in tokens."""

    def __init__(self) -> None:
        self.caches: dict[str, Cache] = {}
        self.length = 0


class HFModel(LanguageModel):
    """A causal language model of transformers, adapted.

    It is always in evaluation mode: without dropout and other noise, so that a step is a function of its batch.  With
    activation checkpointing, which is of training mode, dropout rates of its blocks are set to 0.

    Args:
        inner: the model; temperatures are added unless it has them.
        config: sizes and temperatures; with none, the model itself.
        seed: for temperatures with random start values.
    """

    def __init__(self, inner: PreTrainedModel, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        zeros = torch.zeros(probe.vocabulary(inner)) if config.temperature.needs_frequencies else None
        if adaptation(inner) is None:
            add_temperatures(inner, config.temperature, train="all", seed=seed, log_frequency=zeros)
        self.config = config
        self.inner = inner
        self._recomputes = False
        self._whole = not _ends_in_output_matrix(inner)  # its logits are more than a linear map of hidden states
        self._arguments = inspect.signature((inner if self._whole else inner.base_model).forward).parameters.keys()
        self.train(False)
        self.unmeasured = self._why_unmeasured()
        self.uniform = len({layer.plan.n_head for layer in adapted_layers(inner).values()}) == 1

    @property
    def checkpoint_activations(self) -> bool:
        return self._recomputes

    @checkpoint_activations.setter
    def checkpoint_activations(self, enable: bool) -> None:
        if enable == self._recomputes:
            return
        if enable:
            try:
                self.inner.activation_checkpointing_enable({"use_reentrant": False})
            except ValueError as error:
                raise UserError(f"trainer.checkpoint_activations=true: {first_line(error)}; valid: false") from None
        else:
            self.inner.activation_checkpointing_disable()
        self._recomputes = enable

    def train(self, mode: bool = True) -> HFModel:
        self.training = mode
        self.inner.eval()
        for module in self.inner.modules():
            if self._recomputes and isinstance(module, GradientCheckpointingLayer):
                module.training = mode  # which it asks for, of itself alone
                for name in [
                    name for name, value in vars(module).items() if "drop" in name and value.__class__ is float
                ]:
                    setattr(module, name, 0.0)
        return self

    def _hidden(
        self,
        ids: Tensor,
        observe: Observer | None,
        visible_keys: Tensor | None,
        cache: HFCache | None,
        dropout_seeds: Tensor | None,
    ) -> Tensor:
        given: dict[str, Any] = {"input_ids": ids, "use_cache": cache is not None}
        past = cache.length if cache is not None else 0
        if visible_keys is not None:
            visible_keys = visible_keys.expand(ids.shape)
            if "position_ids" in self._arguments:
                given["position_ids"] = visible_keys - 1
            if cache is not None:
                keys = torch.arange(past + ids.size(1), device=ids.device)
                given["attention_mask"] = (keys >= len(keys) - visible_keys[:, -1:]).long()
        if cache is not None:
            given |= cache.caches
        elif not self._takes("use_cache"):
            del given["use_cache"]
        with observing(self.inner, observe):
            try:
                output = (self.inner if self._whole else self.inner.base_model)(**given)
            except IndexError:
                limit, length = self.config.max_positions, past + ids.size(1)
                if length <= limit:
                    raise
                raise UserError(f"{length} tokens: over the model's {limit} positions") from None
        if cache is not None:
            cache.caches = {name: value for name, value in output.items() if isinstance(value, Cache)}
            cache.length += ids.size(1)
        hidden: Tensor = output.logits if self._whole else output.last_hidden_state
        return hidden

    def _takes(self, argument: str) -> bool:
        return bool({argument, "kwargs"} & self._arguments)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden if self._whole else super().logits(hidden)

    def _losses(self, hidden: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
        if not self._whole:
            return super()._losses(hidden, targets, reduction)
        with torch.autocast(hidden.device.type, enabled=False):
            return F.cross_entropy(hidden.float(), targets, reduction=reduction)

    def output_matrix(self) -> nn.Module:
        found: nn.Module = self.inner.get_output_embeddings()
        return found

    def empty_cache(self) -> HFCache:
        return HFCache()

    def layers(self) -> list[nn.Module]:
        parents = (self.inner.get_submodule(name.rpartition(".")[0]) for name in adapted_layers(self.inner))
        return list(dict.fromkeys(parents))

    def first_temperatures(self) -> dict[str, Temperature]:
        first = next(iter(adapted_layers(self.inner).values()))
        return {name: module for name, module in first.items() if isinstance(module, Temperature)}

    def query_key_weights(self) -> list[tuple[Tensor, Tensor]] | None:
        """As in the base class; None if the model normalizes its queries or keys."""
        found: list[tuple[Tensor, Tensor]] = []
        for name, layer in adapted_layers(self.inner).items():
            weights = [_weight(self.inner.get_submodule(name), layer, slot) for slot in ("query", "key")]
            query, key = weights
            if query is None or key is None:
                return None
            found.append((query, key))
        return found

    @property
    def vocab_size(self) -> int:
        return probe.vocabulary(self.inner)

    def frequencies(self) -> Tensor | None:
        found = getattr(self.inner, "ssa_frequencies", None)
        return found.get_buffer("log_frequency") if isinstance(found, TokenFrequencies) else None

    @torch.no_grad()
    def check_document_mask(self) -> None:
        """Refuse a model whose attention, or other layers, do not restart with a document.

        Raises:
            UserError: the logits of a document depend on the one before.
        """
        length = 6
        ids = (torch.arange(4 * length, device=self.device) * 5 + 1).view(2, 2 * length) % self.vocab_size
        ids[1, length:] = ids[0, length:]  # after another document
        visible_keys = torch.arange(1, length + 1, device=self.device).repeat(2)
        one, other = self(ids, visible_keys=visible_keys)[:, length:].float()
        alone = self(ids[:1, length:])[0].float()
        if max((one - other).abs().max(), (one - alone).abs().max()) > 1e-3 * one.std():
            raise UserError(
                f"data.document_mask=true: the layers of {type(self.inner).__name__} do not restart with a document; "
                "valid: false"
            )

    def _why_unmeasured(self) -> str | None:
        ids = torch.arange(8, device=self.device)[None] % self.vocab_size
        try:
            attention_statistics(self.inner, ids)
        except UserError as error:
            return str(error).removeprefix("model: ")
        return None


def load(config: ModelConfig, folder: Path, seed: int, where: str) -> HFModel:
    """Load the weights in a folder, in float32, and add temperatures.

    Args:
        config: with the folder's config.json in ``hf_config``.
        folder: with safetensors files, and those of `ssa.save`, if it has temperatures of its own.
        seed: as in `HFModel`.
        where: begins an error message.

    Raises:
        UserError: the model cannot be loaded or adapted, or its weights are damaged.
    """
    try:
        with quiet():
            inner, report = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config_of(str(config.hf_config)),
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as error:  # of any kind: file formats, sizes, missing packages
        raise UserError(f"{where}: transformers cannot load it ({first_line(error)})") from None
    for what in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, report.get(what, ()))):
            raise UserError(f"{where}: {len(names)} {what.replace('_', ' ')}: {', '.join(names[:_SHOWN])}")
    if bad := [name for name, parameter in inner.named_parameters() if not parameter.isfinite().all()]:
        raise UserError(f"{where}: {len(bad)} not finite (NaN or infinity): {', '.join(bad[:_SHOWN])}")
    if (folder / CONFIG).is_file():
        load_temperatures(inner, folder, train="all")
    return HFModel(inner, config, seed)


def count_weights(config: ModelConfig) -> int:
    """The number of parameters, without temperatures, of a model that is not built.

    Raises:
        UserError: the installed transformers cannot make it.
    """
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in _made(config).parameters())


def without_weights(config: ModelConfig) -> HFModel:
    """A model whose weights are to be loaded; until then they are random.

    Raises:
        UserError: the installed transformers cannot make or adapt it.
    """
    with torch.random.fork_rng(devices=[]), quiet():
        return HFModel(_made(config), config)


def _made(config: ModelConfig) -> PreTrainedModel:
    try:
        return AutoModelForCausalLM.from_config(config_of(str(config.hf_config)), dtype=torch.float32)
    except Exception as error:  # of any kind: those of a config of another version
        raise UserError(f"model.hf_config: transformers cannot make this model ({first_line(error)})") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without progress bars and remarks of transformers; errors are raised."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def _ends_in_output_matrix(model: PreTrainedModel) -> bool:
    """Whether its logits are the output matrix times the hidden states of its base model, without a bias."""
    matrix: Any = model.get_output_embeddings()
    if getattr(matrix, "bias", None) is not None or not isinstance(getattr(matrix, "weight", None), Tensor):
        return False
    ids = (torch.arange(9, device=model.device)[None] * 3 + 1) % probe.vocabulary(model)
    with probe.probing(model), suppress(AttributeError, TypeError, ValueError):
        hidden = model.base_model(input_ids=ids).last_hidden_state
        return model.base_model is not model and torch.equal(matrix(hidden), model(input_ids=ids).logits)
    return False


def _weight(attention: nn.Module, layer: LayerTemperatures, slot: str) -> Tensor | None:
    """The matrix of a projection, (H, d, D); None if what it computes is normalized afterwards."""
    source = layer.plan.sources.get(slot)
    if source is None or source.end != source.projection:
        return None
    projection = attention.get_submodule(source.projection)
    weights: Iterable[Tensor] = projection.parameters()
    like = next(iter(weights))
    inputs = torch.eye(layer.plan.d_model, dtype=like.dtype, device=like.device)[None]  # (1, D, D)
    with torch.no_grad():
        outputs = projection(inputs) - projection(torch.zeros_like(inputs[:, :1]))  # its bias
        return source.features.select(outputs)[0].permute(1, 2, 0)
