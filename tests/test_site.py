"""The site has every page: what is not in its navigation is not on it."""

from __future__ import annotations

from typing import Any

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
    assert documents - set(NAV) == set()


def test_every_page_of_the_navigation_exists() -> None:
    assert len(NAV) == len(set(NAV))
    for page in NAV:
        if page.startswith("api/"):
            module = ROOT.joinpath(*page.removeprefix("api/").removesuffix(".md").split("."))
            assert module.with_suffix(".py").is_file() or (module / "__init__.py").is_file(), page
        else:
            assert (ROOT / page).is_file(), page
