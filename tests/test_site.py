"""The site has every page: what is not in its navigation is not on it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT


def pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for item in (nav.values() if isinstance(nav, dict) else nav) for page in pages(item)]


NAV = pages(yaml.safe_load((ROOT / "docs" / "site" / "mkdocs.yml").read_text())["nav"])


def test_every_document_is_in_the_navigation() -> None:
    patterns = ("*.md", "docs/*.md", "docs/*.ipynb", "experiments/README.md", "experiments/*/README.md", "sweeps/*.md")
    documents = {path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)}
    assert {path.replace(".ipynb", ".md") for path in documents} - set(NAV) == set()


def test_every_page_of_the_navigation_exists() -> None:
    assert len(NAV) == len(set(NAV))
    for page in NAV:
        if page.startswith("api/"):
            module = ROOT.joinpath(*page.removeprefix("api/").removesuffix(".md").split("."))
            assert module.with_suffix(".py").is_file() or (module / "__init__.py").is_file(), page
        else:
            assert (ROOT / page).is_file() or (ROOT / page).with_suffix(".ipynb").is_file(), page


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_has_its_outputs_and_no_paths_of_a_machine(path: Path) -> None:
    assert path.stat().st_size < 300_000
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for output in (output for cell in cells for output in cell["outputs"]):
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"
        text = "".join([*output.get("text", ""), *output.get("data", {}).get("text/plain", "")])
        assert not re.search(r"(?<!\w)/\w+/", text), text
