"""One name, color, dash and marker for each temperature rule, in all figures and on the report page."""

from __future__ import annotations

from typing import Any, NamedTuple


class RuleStyle(NamedTuple):
    """Look of a rule.

    Attributes:
        color: with a contrast of at least 3 on white and on the report page's dark background.
        dash: lengths of strokes and gaps, in line widths; empty for a solid line.  With the marker, it distinguishes
            rules in grayscale.
    """

    name: str
    color: str
    dash: tuple[float, ...]
    marker: str

    def line(self, **look: Any) -> dict[str, Any]:
        """Arguments of ``Axes.plot``."""
        return {"color": self.color, "linestyle": (0, self.dash) if self.dash else "-", "label": self.name, **look}


STYLES = {  # by option of model/temperature
    "none": RuleStyle("vanilla", "#6b6b6b", (), "o"),
    "ssa": RuleStyle("SSA", "#0072b2", (4, 1.5), "D"),
    "ssa_mlp": RuleStyle("SSA (own MLP)", "#3d94c9", (4, 1.5, 1, 1.5), "d"),
    "position": RuleStyle("position-aware", "#d55e00", (1.2, 1.2), "s"),
    "token": RuleStyle("token-aware", "#008f68", (6, 2), "^"),
    "constant": RuleStyle("constant", "#8a6d00", (3, 1, 1, 1, 1, 1), "v"),
    "frequency": RuleStyle("frequency", "#c2337a", (8, 2, 2, 2), "P"),
    "yarn": RuleStyle("YaRN", "#7f6bd6", (2, 2), "X"),
    "ssmax": RuleStyle("SSMax", "#a86f99", (5, 3), "<"),
    "gate": RuleStyle("gated attention", "#a0522d", (3, 1), ">"),
    "tanh_gate": RuleStyle("gated attention (tanh)", "#b5651d", (3, 1, 1, 1), "*"),
    "qk_norm": RuleStyle("qk-norm", "#5f8a2f", (1, 2.5), "p"),
    "released": RuleStyle("released code", "#00868b", (7, 1, 1, 1), "h"),
    "released_linear": RuleStyle("released code, linear", "#4b8f8c", (2, 1, 6, 1), "H"),
}
_OTHER = RuleStyle("", "#8a3ab9", (1, 1), "*")


def style_of(variant: str) -> RuleStyle:
    """The look of a rule or a variant (`ssa.rule_names.variant`): the name is "SSA, query" for ``ssa-query``.

    One look serves all that belong to no rule.
    """
    rule, _, part = variant.partition("-")
    style = STYLES.get("none" if rule == "vanilla" else rule)
    if style is None:
        return _OTHER._replace(name=variant)
    return style._replace(name=", ".join(filter(None, (style.name, part.replace("-", " ")))))
