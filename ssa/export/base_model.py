"""What an export without a training run contains: a pretrained model with new temperatures.

torch is not imported, so that a mistake is reported at once.
"""

from __future__ import annotations

from dataclasses import replace

from ssa.config_errors import closest
from ssa.errors import UserError
from ssa.model.config import ModelConfig
from ssa.pretrained.source import check_temperatures, describe
from ssa.rule_names import rule, rule_names


def with_temperatures(init_from: str, name: str | None) -> ModelConfig:
    """The architecture of a pretrained model, with temperatures at their start values for fine-tuning.

    Args:
        init_from: a Hugging Face model: a folder or a Hub id.
        name: an option of ``model/temperature=``; None: the model's own temperatures, if any.

    Raises:
        UserError: the model is not available, there is no such rule, it reads token counts, or the model has other
            temperatures.
    """
    pretrained = describe(init_from)
    if name is None:
        return pretrained.model
    if name not in rule_names():
        guess, valid = closest(name, rule_names()), ", ".join(rule_names())
        raise UserError(f"model/temperature={name}: not one of the rules{guess}; valid: {valid}")
    model = replace(pretrained.model, temperature=rule(name).starting(pretrained=True))
    check_temperatures(model, pretrained)
    if pretrained.has_temperatures:
        return pretrained.model  # whose start values may differ
    if model.temperature.needs_frequencies:
        valid = ", ".join(other for other in rule_names() if not rule(other).needs_frequencies)
        raise UserError(
            f"model/temperature={name}: reads token counts of a training text, which train.py takes; valid: {valid}"
        )
    return model
