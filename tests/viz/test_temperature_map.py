"""Tokens colored by temperature: numbers equal to the model's, and readable without color."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ssa.errors import UserError
from ssa.model.attention import AttentionInputs
from ssa.model.config import ModelConfig, Terms
from ssa.model.transformer import Transformer
from ssa.viz.temperature_map import (
    CONTROLS,
    TemperatureView,
    check_choice,
    color,
    ink,
    print_view,
    shown,
    token_temperatures,
    view_tokens,
)
from ssa.viz.temperature_map_files import _cells, check_files, write_html, write_picture

IDS = [3, 1, 4, 1, 5, 9, 2]
PARTS = {
    "token and position": Terms(token="shared", position="log"),
    "of hidden states": Terms(token="gate"),
    "constant": Terms(multiplier="constant"),
    "scalar": Terms(multiplier="yarn"),
    "a number a feature": Terms(multiplier="rms_norm"),
}


@pytest.fixture
def model(model_config: Callable[..., ModelConfig]) -> Callable[..., Transformer]:
    """Makes models with random temperatures and grouped-query attention: 3 layers, 4 heads, 2 key-value heads."""

    def make(**fields: object) -> Transformer:
        config = model_config(**{"n_layer": 3, "n_head": 4, "n_kv_head": 2, "positions": "rotary", **fields})
        model = Transformer(config, vocab_size=10).eval()
        generator = torch.Generator().manual_seed(0)
        for temperature in model.temperatures():
            for parameter in temperature.parameters():
                torch.nn.init.normal_(parameter, generator=generator)
        return model

    return make


@pytest.mark.parametrize("per", ["head", "layer"])
@pytest.mark.parametrize("of", ["query", "key", "value", "output"])
@pytest.mark.parametrize("parts", PARTS)
def test_temperatures_are_the_models(model: Callable[..., Transformer], parts: str, of: str, per: str) -> None:
    made = model(**{of: PARTS[parts], "per": per})
    seen: list[AttentionInputs] = []
    with torch.no_grad():
        made(torch.tensor([IDS]), observe=seen.append)
    heads = 2 if of in ("key", "value") else 4
    shape = (1, heads, len(IDS), made.config.head_dim if parts == "a number a feature" else 1)
    layers = [inputs.temperatures[of].broadcast_to(shape) for inputs in seen]
    expected = torch.stack([layer[0].mean(dim=-1) for layer in layers])  # (layers, H, T)
    torch.testing.assert_close(torch.tensor(token_temperatures(made, IDS, of)), expected.mean(dim=(0, 1)))
    torch.testing.assert_close(torch.tensor(token_temperatures(made, IDS, of, layer=2)), expected[2].mean(dim=0))
    torch.testing.assert_close(torch.tensor(token_temperatures(made, IDS, of, head=1)), expected[:, 1].mean(dim=0))
    torch.testing.assert_close(torch.tensor(token_temperatures(made, IDS, of, layer=0, head=1)), expected[0, 1])


def test_the_position_rule_by_hand(model: Callable[..., Transformer]) -> None:
    made = model(query=Terms(position="log"))
    alpha = made.get_parameter("blocks.1.attention.temperature.query.terms.position.alpha")[3].item()
    expected = [1 + math.log(n) / (1 + math.exp(-alpha)) for n in range(1, len(IDS) + 1)]
    assert token_temperatures(made, IDS, "query", layer=1, head=3) == pytest.approx(expected, rel=1e-5)


def test_only_what_the_model_has_can_be_shown(model_config: Callable[..., ModelConfig]) -> None:
    config = model_config(ssa=True, n_layer=3, n_head=4, n_kv_head=2)
    check_choice(config, "query", 2, 3)
    check_choice(config, "value", None, 1)
    for of, layer, head, message in (
        ("key", None, None, "of=key: .* valid: query, value"),
        ("query", 3, None, "layer=3: .* valid: 0 to 2"),
        ("query", None, 4, "head=4: .* valid: 0 to 3"),
        ("value", None, 2, "head=2: .* valid: 0 to 1"),
    ):
        with pytest.raises(UserError, match=message):
            check_choice(config, of, layer, head)
    with pytest.raises(UserError, match="vanilla attention"):
        check_choice(model_config(), "query", None, None)


def test_pieces_are_the_text(model: Callable[..., Transformer]) -> None:
    def decode(ids: list[int]) -> str:
        return bytes([0xC3, 0xA9, 0x20, 0x41, 0x0A, 0xE2][i] for i in ids).decode(errors="replace")

    made, ids = model(ssa=True), [3, 0, 1, 2, 4, 5]
    view = view_tokens(made, decode, ids, "value", layer=1)
    assert view.pieces == ["A", "", "é", " ", "\n", "\N{REPLACEMENT CHARACTER}"]
    assert view.values == token_temperatures(made, ids, "value", layer=1)
    assert view.over == "layer 1, mean over 2 heads"
    assert [text for text, *_ in view.tokens()] == ["A", "▯", "é", "·", "⏎\n", "\N{REPLACEMENT CHARACTER}"]


def test_nothing_is_invisible_and_nothing_moves_the_cursor() -> None:
    assert shown(" cat") == " cat"
    assert shown("  ") == "··"
    assert shown(" \n\t") == "·⏎\n⇥"
    assert shown("\N{NO-BREAK SPACE}") == "·"
    assert shown("a\x1b[31m\x9b\r") == "a␛[31m\N{REPLACEMENT CHARACTER}␍"
    assert shown("") == "▯"
    assert not any(chr(code).isprintable() for code in CONTROLS)


def test_colors_diverge_around_one() -> None:
    assert color(1.0, 0.5) == (247, 247, 247)
    assert color(0.5, 0.5) == color(0.1, 0.5) == (33, 102, 172)
    assert color(1.5, 0.5) == (178, 24, 43)
    blues = [color(1 - step / 10, 1.0) for step in range(11)]
    assert blues == sorted(blues, reverse=True)


@pytest.mark.parametrize("value", [step / 20 for step in range(41)])
def test_text_can_be_read_on_its_color(value: float) -> None:
    def luminance(rgb: tuple[int, int, int]) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in rgb)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    background = color(value, 1.0)
    light, dark = sorted((luminance(background), luminance(ink(background))), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, AA


VIEW = TemperatureView(
    ["The", " <b>", "\n", "", "é", "   "], [1.2, 0.7, 1.0, 0.9, 1.1, 1.05], "query", "layer 0, head 1"
)
TEXT = "The <b>⏎\n▯é···"


def printed(**console: object) -> str:
    file = io.StringIO()
    print_view(Console(file=file, width=200, **console), VIEW)  # type: ignore[arg-type]
    return file.getvalue()


def test_a_terminal_has_colors_and_a_legend() -> None:
    output = printed(force_terminal=True, color_system="truecolor")
    assert "\x1b[38;2;0;0;0;48;2;247;247;247m⏎" in output  # the token at 1
    assert "48;2;33;102;172m <b>" in output  # the one that is furthest from it
    plain = Text.from_ansi(output).plain
    assert plain.startswith(TEXT)
    assert "Query temperature (inverse: it multiplies the query), layer 0, head 1" in plain
    assert "min 0.700, mean 0.992, max 1.200   0.700 " in plain
    assert "Larger: this token's attention is spikier." in plain


def test_without_colors_each_token_has_its_number() -> None:
    output = printed()
    assert output.startswith("The[1.200] <b>[0.700]⏎[1.000]\n▯[0.900]é[1.100]···[1.050]\n\nQuery temperature")
    assert "\x1b" not in output


def test_a_value_of_all_ones_has_no_strong_colors() -> None:
    view = TemperatureView(["a", "b"], [1.0, 1.0], "value", "layer 0")
    assert view.reach == 0.01
    assert {background for _, _, background, _ in view.tokens()} == {(247, 247, 247)}


class Page(HTMLParser):
    """Collects the text of ``<pre>`` and the titles of its spans."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.titles, self.inside, self.tags = "", [], False, set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.inside |= tag == "pre"
        if tag == "span":
            self.titles.append(dict(attrs)["title"])

    def handle_endtag(self, tag: str) -> None:
        self.inside &= tag != "pre"

    def handle_data(self, data: str) -> None:
        self.text += data if self.inside else ""


def test_html_has_each_token_with_its_number(tmp_path: Path) -> None:
    write_html(VIEW, tmp_path / "view.html")
    content = (tmp_path / "view.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(content)
    assert page.text == TEXT
    assert page.titles == ["1.2000", "0.7000", "1.0000", "0.9000", "1.1000", "1.0500"]
    assert page.tags.isdisjoint({"b", "script", "link", "img"})
    assert "http" not in content
    for part in ("min 0.700, mean 0.992, max 1.200", "0.700<i ", "</i>1.200", "spikier"):
        assert part in content
    assert [path.name for path in tmp_path.iterdir()] == ["view.html"]


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"html=.*nowhere/view\.html: cannot be written \(No such file or directory\)"):
        write_html(VIEW, tmp_path / "nowhere" / "view.html")
    with pytest.raises(UserError, match=r"html=.*nowhere/x\.html: valid: a file in an existing folder"):
        check_files(html=str(tmp_path / "nowhere" / "x.html"))
    with pytest.raises(UserError, match=r"html=.*: valid: a file in"):
        check_files(html=str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_files(html=str(tmp_path / "x.html"))
    with pytest.raises(UserError, match=r"^png=x\.png: matplotlib is not installed; run pip install -e '\.\[plots\]'$"):
        check_files(png="x.png")


LONG = TemperatureView([" word"] * 50 + ["日本" * 80, "$x$", "\n\n", "end"], [1.0] * 54, "value", "")


def test_the_picture_is_laid_out_on_a_grid() -> None:
    cells = list(_cells(LONG))
    assert all(column + cell_len(text) <= 100 for _, column, text, *_ in cells)
    ends = [(row, column + cell_len(text)) for row, column, text, *_ in cells]
    starts = [(row, column) for row, column, *_ in cells]
    assert all(start >= end or start[0] > end[0] for end, start in zip(ends, starts[1:], strict=False))
    assert "".join(text for _, _, text, *_ in cells) == " word" * 50 + "日本" * 80 + "$x$⏎⏎end"


def test_a_picture_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, view in (("view.png", VIEW), ("long.png", LONG)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            write_picture(view, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.png", "view.png"]


def test_below_one_is_underlined_so_that_it_shows_in_grayscale(tmp_path: Path) -> None:
    write_html(TemperatureView(["low", "high"], [0.5, 1.5], "query", "layer 0"), tmp_path / "view.html")
    page = (tmp_path / "view.html").read_text()
    assert re.findall(r'<span [^>]*class="u"[^>]*>(\w+)<', page) == ["low"]
    assert "underlined: below 1" in page


def test_more_views_are_folded_below_the_first(tmp_path: Path) -> None:
    views = [TemperatureView(["a", "b"], [1.1, 1.2], "query", f"layer {layer}") for layer in range(3)]
    write_html(views[0], tmp_path / "view.html", views[1:])
    page = (tmp_path / "view.html").read_text()
    assert re.findall(r"<summary>(.*?)</summary>", page) == ["layer 1", "layer 2"]
    assert page.count("<pre>") == 3


def test_an_svg_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_picture(VIEW, tmp_path / "view.svg")
    assert "<svg" in (tmp_path / "view.svg").read_text()


def test_the_scale_is_of_the_values_that_occur() -> None:
    view = TemperatureView(["a", "b", "c"], [0.5, 0.75, 1.1], "query", "layer 0")
    low, *_, high = (color(value, view.reach) for value in view.scale(9))
    assert (view.scale(9)[0], view.scale(9)[-1]) == (0.5, 1.1)
    assert low == color(0.5, 0.5), "the strongest blue"
    assert high != color(1.5, 0.5), "no red that no token has"


def test_an_unexplained_picture_has_the_color_bar_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, explained in (("with.svg", True), ("without.svg", False)):
        write_picture(VIEW, tmp_path / name, explained=explained)
    texts = [(tmp_path / name).read_text() for name in ("with.svg", "without.svg")]
    assert ["spikier" in text for text in texts] == [True, False]
    assert all("0.700" in text and "1.200" in text for text in texts)
