"""LaTeX rendering of tables."""

from __future__ import annotations

import re
from unicodedata import normalize

from ssa.report.tables import Table, TableCell, lines_of

NEW_LINE = r" \newline "
NEEDS = r"% needs \usepackage{booktabs} \usepackage{graphicx} \usepackage[T1]{fontenc}"

COMMANDS = {  # in text
    "\\": "textbackslash", "~": "textasciitilde", "^": "textasciicircum", "<": "textless", ">": "textgreater",
    "|": "textbar", '"': "textquotedbl", "'": "textquotesingle", "`": "textasciigrave", "‘": "textquoteleft",
    "’": "textquoteright", "“": "textquotedblleft", "”": "textquotedblright", "–": "textendash", "—": "textemdash",
    "…": "dots", "§": "S", "¶": "P", "†": "dag", "‡": "ddag", "•": "textbullet", "©": "copyright",
    "®": "textregistered", "™": "texttrademark", "£": "pounds", "€": "texteuro",
}  # fmt: skip
MATHEMATICS = {
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "ε": r"\varepsilon", "ζ": r"\zeta", "η": r"\eta",
    "θ": r"\theta", "ι": r"\iota", "κ": r"\kappa", "λ": r"\lambda", "μ": r"\mu", "µ": r"\mu", "ν": r"\nu", "ξ": r"\xi",
    "π": r"\pi", "ρ": r"\rho", "σ": r"\sigma", "ς": r"\varsigma", "τ": r"\tau", "υ": r"\upsilon", "φ": r"\varphi",
    "χ": r"\chi", "ψ": r"\psi", "ω": r"\omega", "Γ": r"\Gamma", "Δ": r"\Delta", "Θ": r"\Theta", "Λ": r"\Lambda",
    "Ξ": r"\Xi", "Π": r"\Pi", "Σ": r"\Sigma", "Φ": r"\Phi", "Ψ": r"\Psi", "Ω": r"\Omega", "∆": r"\Delta",
    "−": "-", "±": r"\pm", "∓": r"\mp", "×": r"\times", "÷": r"\div", "·": r"\cdot", "⋅": r"\cdot", "∗": r"\ast",
    "≤": r"\leq", "≥": r"\geq", "≠": r"\neq", "≈": r"\approx", "≡": r"\equiv", "∼": r"\sim", "≪": r"\ll", "≫": r"\gg",
    "∝": r"\propto", "∞": r"\infty", "√": r"\surd", "∑": r"\sum", "∏": r"\prod", "∂": r"\partial", "∇": r"\nabla",
    "∈": r"\in", "∉": r"\notin", "∅": r"\emptyset", "∩": r"\cap", "∪": r"\cup", "⊂": r"\subset", "⊆": r"\subseteq",
    "∀": r"\forall", "∃": r"\exists", "¬": r"\neg", "∧": r"\wedge", "∨": r"\vee", "←": r"\leftarrow",
    "→": r"\rightarrow", "↔": r"\leftrightarrow", "↑": r"\uparrow", "↓": r"\downarrow", "⇒": r"\Rightarrow",
    "⇔": r"\Leftrightarrow", "⟨": r"\langle", "⟩": r"\rangle", "‖": r"\Vert", "ℓ": r"\ell", "⊙": r"\odot",
    "⊗": r"\otimes", "⊕": r"\oplus", "⋆": r"\star", "★": r"\star", "′": "'", "″": "''", "°": r"^\circ",
    "✓": r"\surd", "✔": r"\surd", "✗": r"\times", "✘": r"\times",
}  # fmt: skip
SIGNS = {
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    **{sign: rf"\{command}{{}}" for sign, command in COMMANDS.items()},
    **{sign: rf"\ensuremath{{{command}}}" for sign, command in MATHEMATICS.items()},
    **{sign: rf"\textsuperscript{{{digit}}}" for digit, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{sign: rf"\textsubscript{{{digit}}}" for digit, sign in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    "⁻": r"\textsuperscript{\ensuremath{-}}",
    # After "\\" and \midrule these two would start an argument.
    "[": "{[}", "*": "{*}",
    "\N{NO-BREAK SPACE}": "~", "\N{NARROW NO-BREAK SPACE}": r"\,", "\N{THIN SPACE}": r"\,",
    "‐": "-", "\N{NON-BREAKING HYPHEN}": "-", "⁄": "/", "\N{ZERO WIDTH SPACE}": "", "\N{VARIATION SELECTOR-16}": "",
}  # fmt: skip
LETTERS = re.compile("[ -~À-ĥĨ-ķĹ-ľŁ-ňŊ-ťŨ-ž]")  # characters of ASCII, Latin-1 and Latin Extended-A in T1
MINUS = re.compile(r"(?<![\w.])-(?=\d)")
LIGATURES = re.compile("-(?=-)|,(?=,)")  # "--" and ",," would become ligatures


def to_latex(table: Table) -> str:
    r"""A ``table`` environment with booktabs for pdflatex, to be ``\input``.

    References are in italics.  Characters without a LaTeX equivalent are written as ``U+`` and their code point.
    """
    marks = table.marks()
    columns = "".join("l" if table.is_text(column) else "r" for column in range(len(table.columns)))
    notes = [rf"\textsuperscript{{{mark}}} {text(note, NEW_LINE)}\par" for note, mark in marks.items()]
    if notes:
        start = [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize\raggedright"]
        notes = [*start, *notes, r"\end{minipage}"]
    return "\n".join([
        NEEDS,
        r"\begin{table}",
        r"\centering",
        rf"\caption{{\textbf{{{text(table.heading)}}} {text(table.caption)}}}",
        rf"\label{{tab:{re.sub('[^a-z0-9]+', '-', table.title.lower()).strip('-')}}}",
        r"\small",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",  # no wider than the page
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(text(name) for name in table.columns) + r" \\",
        r"\midrule",
        *(" & ".join(_cell(cell, marks) for cell in row) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}}",
        *notes,
        r"\end{table}",
    ]) + "\n"  # fmt: skip


def text(plain: str, line_break: str = " ") -> str:
    """LaTeX that prints a plain text."""
    lines = ["".join(map(_sign, line)) for line in lines_of(normalize("NFC", plain))]
    return line_break.join(LIGATURES.sub(r"\g<0>{}", line) for line in lines)


def _sign(sign: str) -> str:
    if sign in SIGNS:
        return SIGNS[sign]
    if LETTERS.match(sign):
        return sign
    if (alike := normalize("NFKC", sign)) != sign:
        return "".join(_sign(each) for each in alike)
    return f"U+{ord(sign):04X}"


def _cell(cell: TableCell, marks: dict[str, str]) -> str:
    shown = text(cell.shown)
    if cell.state == "value":
        shown = MINUS.sub(r"\\ensuremath{-}", shown)
    if cell.state == "reference":
        shown = rf"\textit{{{shown}}}"
    return rf"{shown}\textsuperscript{{{marks[cell.note]}}}" if cell.note else shown
