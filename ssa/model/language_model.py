"""What training, evaluation and generation ask of a causal language model with temperatures.

Letters: B batch, T tokens, D d_model, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ssa.model.attention import Observer
from ssa.model.config import ModelConfig
from ssa.model.loss import Reduction, linear_cross_entropy
from ssa.model.temperature import Temperature
from ssa.model.temperature_rules import standardized_log_counts


class LanguageModel(nn.Module):
    """A causal language model: token ids in, next-token logits or losses out.

    `Transformer` is this project's own; `ssa.adapter.hf_model.HFModel`, any model of transformers.

    Attributes:
        config: the architecture and its temperatures.
        checkpoint_activations: in training, keep only the input of each block, and compute the block again in the
            backward pass: less memory, more time, equal numbers.
        flex_attention: in training, compute attention within documents by FlexAttention, which has no dropout.
        n_dropout_sites: number of places with dropout.
        unmeasured: why its attention maps cannot be measured; None: they can.
        uniform: whether all layers have equally many heads, as statistics need.
    """

    config: ModelConfig
    checkpoint_activations: bool
    flex_attention: bool = False
    n_dropout_sites: int = 0
    unmeasured: str | None = None
    uniform: bool = True

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        observe: Observer | None = None,
        *,
        visible_keys: Tensor | None = None,
        cache: Any = None,
        dropout_seeds: Tensor | None = None,
        reduction: Reduction = "none",
    ) -> Tensor:
        """Next-token logits or, with targets, losses.

        Args:
            ids: token ids, (B, T); learned positions end at ``config.max_positions``.
            targets: the tokens that follow, (B, T).
            observe: called with the `AttentionInputs` of each layer, first to last.
            visible_keys: the number of tokens each token sees, (T,) or (B, T): itself and those just before it, cached
                ones included.  It restarts at 1 with each document or after left padding, and so do positions.
                Default: all.
            cache: from `empty_cache`: earlier tokens; the new ones are added to it.
            dropout_seeds: of the masks of each sample, (B, ``n_dropout_sites``), integers on the CPU.  Default: masks
                follow from the state of torch's generator.
            reduction: of the losses, ``none`` or ``mean``.

        Returns:
            logits (B, T, V); or negative log-likelihoods (B, T) or their mean, float32, in nats.
        """
        hidden = self._hidden(ids, observe, visible_keys, cache, dropout_seeds)  # (B, T, D)
        if targets is None:
            return self.logits(hidden)
        losses = self._losses(hidden.flatten(0, 1), targets.flatten(), reduction)
        return losses if reduction == "mean" else losses.view_as(targets)

    def hidden(
        self,
        ids: Tensor,
        observe: Observer | None = None,
        *,
        visible_keys: Tensor | None = None,
        cache: Any = None,
        dropout_seeds: Tensor | None = None,
    ) -> Tensor:
        """What `logits` reads, (B, T, D), if few logits are needed.  Arguments as in `forward`."""
        return self._hidden(ids, observe, visible_keys, cache, dropout_seeds)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        logits: Tensor = self.output_matrix()(hidden)
        return logits

    @abstractmethod
    def output_matrix(self) -> nn.Module:
        """The last linear map."""

    @abstractmethod
    def empty_cache(self) -> Any:
        """A cache for `forward`."""

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The blocks, first to last."""

    @abstractmethod
    def query_key_weights(self) -> list[tuple[Tensor, Tensor]] | None:
        """W_q (H, d, D) and W_k (K, d, D) of each layer, whose products are its logits; None if those are others."""

    @abstractmethod
    def first_temperatures(self) -> dict[str, Temperature]:
        """The first layer's temperatures by projection; all layers have the same ones."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """V, the rows of the token embedding."""

    @abstractmethod
    def frequencies(self) -> Tensor | None:
        """Standardized log-frequencies of the tokens, (V,), if a temperature reads them; all 0 until they are set."""

    @abstractmethod
    def _hidden(
        self,
        ids: Tensor,
        observe: Observer | None,
        visible_keys: Tensor | None,
        cache: Any,
        dropout_seeds: Tensor | None,
    ) -> Tensor: ...

    def _losses(self, hidden: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
        """(N, D), (N,) -> (N,) or their mean."""
        return linear_cross_entropy(hidden, self.output_matrix().get_parameter("weight"), targets, reduction)

    def check_document_mask(self) -> None:
        """Refuse a model that cannot be trained within documents.

        Raises:
            UserError: the logits of a document depend on the one before.
        """

    def freeze_backbone(self) -> None:
        """Disables gradients of all parameters but those of the temperatures."""
        self.requires_grad_(False)
        for parameter in self.temperature_parameters().values():
            parameter.requires_grad_(True)

    def temperatures(self) -> list[Temperature]:
        """All temperatures, from the first layer to the last; none in vanilla attention."""
        return [module for module in self.modules() if isinstance(module, Temperature)]

    def temperature_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of all temperatures, by their names in the model."""
        ours = {parameter for temperature in self.temperatures() for parameter in temperature.parameters()}
        return {name: parameter for name, parameter in self.named_parameters() if parameter in ours}

    def temperature_state(self) -> dict[str, Tensor]:
        """What temperatures add to the state dict: their parameters, and the token frequencies that some read."""
        ours = self.temperature_parameters()
        state = self.state_dict().items()
        return {name: tensor for name, tensor in state if name in ours or name.endswith("log_frequency")}

    @torch.no_grad()
    def set_token_counts(self, counts: Tensor) -> None:
        """Sets token frequencies, for the temperatures that read them, see `standardized_log_counts`.

        Args:
            counts: how often each token occurs, (V,).
        """
        frequencies = self.frequencies()
        if frequencies is not None:
            frequencies.copy_(standardized_log_counts(counts))

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def count_parameters(self) -> dict[str, int]:
        """Number of parameters: total, without embeddings and output matrix, and of the temperatures."""
        total = sum(parameter.numel() for parameter in self.parameters())
        embeddings = {module.weight for module in self.modules() if isinstance(module, nn.Embedding)}
        embeddings |= {self.output_matrix().get_parameter("weight")}
        temperature = sum(parameter.numel() for parameter in self.temperature_parameters().values())
        non_embedding = total - sum(parameter.numel() for parameter in embeddings)
        return {"total": total, "non_embedding": non_embedding, "temperature": temperature}
