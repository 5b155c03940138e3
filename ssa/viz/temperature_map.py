"""Tokens of a text colored by learned temperature, as in the paper's figure 1: computation and terminal output.

Colors diverge around 1, the temperature of vanilla attention: blue and underlined below, red above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssa.errors import UserError
from ssa.model.config import ModelConfig

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from ssa.model.attention import AttentionInputs
    from ssa.model.language_model import LanguageModel

RGB = tuple[int, int, int]
CONTROLS: dict[int, int] = (
    {code: 0x2400 + code for code in range(32)} | {127: 0x2421} | dict.fromkeys(range(128, 160), 0xFFFD)
)
MEANING = {
    "query": "Larger: this token's attention is spikier.",
    "key": "Larger: other tokens attend to this token, or avoid it, more sharply.",
    "value": "Larger: this token contributes more to the tokens that attend to it; near 0 it is muted.",
    "output": "Larger: the attention output of this token weighs more; near 0 it is ignored.",
}
_BELOW, _AT_ONE, _ABOVE = (33, 102, 172), (247, 247, 247), (178, 24, 43)  # color-blind safe
_GLYPHS: dict[int, int | str] = {**CONTROLS, ord("\n"): "⏎\n", ord("\t"): "⇥"}


@dataclass(frozen=True)
class TemperatureView:
    """Tokens with their temperatures, ready to be drawn."""

    pieces: Sequence[str]  # the text that each token adds, possibly empty
    values: Sequence[float]  # temperatures, one per token
    of: str  # query, key, value or output
    over: str  # the layers and heads shown, in words
    min_reach: float = 0.01  # of `reach`: keeps noise around 1 pale, or gives several views the same colors

    @property
    def reach(self) -> float:
        """Distance from 1 at which colors saturate."""
        return max(self.min_reach, *(abs(value - 1) for value in self.values))

    @property
    def legend(self) -> tuple[str, str, str]:
        """Title; minimum, mean and maximum; interpretation."""
        mean = sum(self.values) / len(self.values)
        numbers = f"min {min(self.values):.3f}, mean {mean:.3f}, max {max(self.values):.3f}"
        return (
            f"{self.of.capitalize()} temperature (inverse: it multiplies the {self.of}), {self.over}",
            numbers,
            f"{MEANING[self.of]} 1: as without a temperature; underlined: below 1.",
        )

    def tokens(self) -> Iterator[tuple[str, float, RGB, RGB]]:
        """Visible text, temperature, background and text color of each token."""
        for piece, value in zip(self.pieces, self.values, strict=True):
            background = color(value, self.reach)
            yield shown(piece), value, background, ink(background)

    def scale(self, steps: int) -> list[float]:
        """Evenly spaced temperatures, from the lowest to the highest that occurs."""
        low, high = min(self.values), max(self.values)
        return [low + (high - low) * step / (steps - 1) for step in range(steps)]


def check_choice(model: ModelConfig, of: str, layer: int | None, head: int | None) -> None:
    """Check that the model has the temperature, layer and head to show.

    Raises:
        UserError: it does not.
    """
    scaled, name = model.temperature.scaled, model.temperature.name
    if not scaled:
        raise UserError(f"model/temperature={name}: vanilla attention has no temperatures to show")
    if of not in scaled:
        raise UserError(f"of={of}: not scaled in this model, model/temperature={name}; valid: {', '.join(scaled)}")
    for key, number, count in (("layer", layer, model.n_layer), ("head", head, _heads(model, of))):
        if number is not None and number >= count:
            raise UserError(f"{key}={number}: no such {key} of {of}; valid: {f'0 to {count - 1}' if count > 1 else 0}")


def token_temperatures(
    model: LanguageModel, ids: Sequence[int], of: str = "query", layer: int | None = None, head: int | None = None
) -> list[float]:
    """The temperature of each token of a text at a layer and head, from 0, or their mean over all (None).

    Raises:
        UserError: the model has no such temperature, layer or head.
    """
    check_choice(model.config, of, layer, head)
    chosen = all_temperatures(model, ids, of)[slice(None) if layer is None else [layer]]  # (layers, H, T)
    values: list[float] = chosen[:, slice(None) if head is None else [head]].mean(dim=(0, 1)).tolist()
    return values


def all_temperatures(model: LanguageModel, ids: Sequence[int], of: str = "query") -> Tensor:
    """The temperature of each token in each layer and head, (L, H, T), averaged over features if per feature.

    The model is in evaluation mode and has this temperature.
    """
    import torch

    heads = _heads(model.config, of)
    layers: list[torch.Tensor] = []

    def observe(inputs: AttentionInputs) -> None:
        layers.append(inputs.temperatures[of].mean(dim=-1).expand(1, heads, len(ids))[0])  # (H, T)

    with torch.inference_mode():
        model(torch.tensor([list(ids)], device=model.device), observe=observe)
    return torch.stack(layers)


def view_tokens(
    model: LanguageModel,
    decode: Callable[[Sequence[int]], str],
    ids: Sequence[int],
    of: str = "query",
    layer: int | None = None,
    head: int | None = None,
) -> TemperatureView:
    """`token_temperatures` with the text of each token; ``decode`` is the tokenizer's."""
    values = token_temperatures(model, ids, of, layer, head)
    return TemperatureView(token_pieces(decode, ids), values, of, over(model.config, of, layer, head))


def token_pieces(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> list[str]:
    """The text that each token adds, in complete characters."""
    from ssa.model.generation import TextStream

    stream = TextStream(decode)
    pieces = [stream.push(token) for token in ids]
    pieces[-1] += stream.flush()
    return pieces


def over(model: ModelConfig, of: str, layer: int | None, head: int | None) -> str:
    """The layers and heads of `token_temperatures`, in words."""
    counts = (("layer", layer, model.n_layer), ("head", head, _heads(model, of)))
    chosen = [f"{key} {number}" for key, number, _ in counts if number is not None]
    means = [f"{count} {key}s" if count > 1 else f"1 {key}" for key, number, count in counts if number is None]
    return ", ".join([*chosen, *(["mean over " + " and ".join(means)] if means else [])])


def color(value: float, reach: float) -> RGB:
    """Color of a temperature, saturated at ``1 - reach`` and ``1 + reach``."""
    end, share = (_BELOW if value < 1 else _ABOVE), min(abs(value - 1) / reach, 1.0)
    red, green, blue = (round(pale + share * (full - pale)) for pale, full in zip(_AT_ONE, end, strict=True))
    return red, green, blue


def ink(background: RGB) -> RGB:
    """Black or white, whichever has the higher contrast (at least 4.5, WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in background)]
    luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return (255, 255, 255) if luminance < 0.179 else (0, 0, 0)


def shown(piece: str) -> str:
    """A token's text with glyphs for invisible characters; ▯ for a token that completes no character."""
    if piece.isspace():
        piece = "".join(character if character in "\n\r\t" else "·" for character in piece)
    return piece.translate(_GLYPHS) or "▯"


def print_view(console: Console, view: TemperatureView) -> None:
    """Print text and legend; on terminals without color, each token is followed by its temperature."""
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    text, bar = Text(), Text()
    for piece, value, background, foreground in view.tokens():
        if console.color_system is None:
            body, newline = piece.removesuffix("\n"), "\n" * piece.endswith("\n")
            text.append(f"{body}[{value:.3f}]{newline}")
        else:
            front, back = Color.from_rgb(*foreground), Color.from_rgb(*background)
            text.append(piece, Style(color=front, bgcolor=back, underline=value < 1))
    what, numbers, meaning = view.legend
    if console.color_system is not None:
        bar.append(f"   {min(view.values):.3f} ")
        for value in view.scale(33):
            bar.append(" ", Style(bgcolor=Color.from_rgb(*color(value, view.reach))))
        bar.append(f" {max(view.values):.3f}")
    for line in (text, "", what, Text.assemble(numbers, bar), meaning):
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def _heads(model: ModelConfig, of: str) -> int:
    return model.n_kv_head if of in ("key", "value") else model.n_head
