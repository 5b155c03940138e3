"""Loads the model in this folder: the base, then its temperatures.  Needs the package `ssa`, which wrote it."""

from __future__ import annotations

from typing import Any

import transformers

import ssa


class AdaptedModel:
    """What ``AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`` calls."""

    @classmethod
    def from_pretrained(cls, folder: str, *args: Any, **kwargs: Any) -> Any:
        """The base of the folder, adapted.  Arguments as in `transformers.PreTrainedModel.from_pretrained`."""
        config = kwargs.get("config") or transformers.AutoConfig.from_pretrained(folder)
        base = getattr(transformers, config.architectures[0])
        loaded = base.from_pretrained(folder, *args, **kwargs)
        model, *information = loaded if isinstance(loaded, tuple) else (loaded,)
        ssa.load(model, folder, revision=kwargs.get("revision"))
        return (model, *information) if information else model

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModelForCausalLM") -> None:
        """Nothing: transformers calls it for all such classes."""
