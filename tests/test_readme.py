"""Commands in README and docs compose, links resolve, and every temperature rule is documented."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

import pytest
from conftest import ROOT

from ssa.command_line.conf_groups import options
from ssa.config import Config


def ablations() -> list[str]:
    """The overrides in the table of ablations: those between backticks that set something of the model."""
    section = (ROOT / "docs" / "temperature.md").read_text().split("## Overrides")[1].split("\n## ")[0]
    table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    typed = re.findall(r"`([^`]+)`", table)
    named = [f"model/temperature={text}" if text in options()["model/temperature"] else text for text in typed]
    return sorted({text for text in named if re.match(r"'?model[./]temperature", text)})


@pytest.mark.parametrize("typed", ablations())
def test_an_ablation_is_overrides_only(smoke: Callable[..., Config], typed: str) -> None:
    overrides = shlex.split(typed)
    base = [] if any(text.startswith("model/temperature=") for text in overrides) else ["model/temperature=ssa"]
    assert smoke("model=llama", *base, *overrides).run_id != smoke("model=ssa_llama").run_id


def test_the_table_of_ablations_is_found() -> None:
    assert len(ablations()) > 15


@pytest.mark.parametrize("rule", options()["model/temperature"])
def test_every_rule_is_described(rule: str) -> None:
    text = (ROOT / "docs" / "temperature.md").read_text()
    assert f"\n| `{rule}` |" in text.split("\n## Rules\n")[1].split("\n## ")[0]
    assert rule == "none" or f"`{rule}`" in text.split("\n## Sources, and what differs\n")[1].split("\n## ")[0]


def test_every_size_and_backbone_is_listed() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [name for name in (*options()["model/size"], *options()["model"]) if name not in readme] == []


def test_it_reads_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


def test_links_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")):
        for link in re.findall(r"\]\(([^)#]+)", document.read_text()):
            assert link.startswith("http") or (document.parent / link).exists(), f"{document.name}: {link}"


def test_nothing_is_left_to_fill_in() -> None:
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")):
        assert "@@" not in document.read_text()
