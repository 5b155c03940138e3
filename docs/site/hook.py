"""Builds the site from the repository as it is, so that no page exists twice.

- Pages of the navigation are read from the root of the repository and keep their paths, so that their links work here
  as they do there.
- ``api/MODULE.md`` is written from the docstrings of a module, a notebook's page from its cells and their outputs.
- A link to a source file leads to the module's API page, if there is one, or to a page that shows the file or folder.
  Pictures and results that a page links to are copied.
- Math becomes MathML, which browsers render without scripts.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")
MATH = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
FUNCTION = re.compile(r"<mi>(log|ln)</mi>(?=<mi>)")  # log n, which would be set without spaces
DATAFRAME_STYLE = re.compile(r"<style.*?</style>| (?:border|class)=\"[^\"]*\"", re.DOTALL)  # the site has its own
LANGUAGES = {".py": "python", ".yaml": "yaml", "": "text"}  # of source files by suffix; other files are copied


def pages(nav: Any) -> Iterator[str]:
    """The paths in a navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from pages(item)


def slug(text: str, separator: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", separator)


def on_config(config: MkDocsConfig) -> None:
    config.mdx_configs["toc"]["slugify"] = slug


def on_files(files: Files, config: MkDocsConfig) -> None:
    nav = set(pages(config.nav))
    todo = list(pages(config.nav))
    while todo:
        path = todo.pop()
        shown = _shown(path, nav)
        if files.get_file_from_path(shown):
            continue
        generated: dict[str, Any] = {}
        if shown.startswith("api/"):
            generated["content"] = f"# `{shown[4:-3]}`\n\n::: {shown[4:-3]}\n"
        elif (notebook := (ROOT / shown).with_suffix(".ipynb")).is_file():
            generated["content"] = _notebook(notebook)
            todo += _linked(generated["content"], path)
        elif shown != path:
            generated["content"] = _source(path)
        elif (ROOT / path).is_file():
            generated["abs_src_path"] = str(ROOT / path)
            if path.endswith(".md"):
                todo += _linked((ROOT / path).read_text(encoding="utf-8"), path)
        else:
            continue  # MkDocs names the page that links to it
        inclusion = InclusionLevel.UNDEFINED if shown in nav else InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, shown, inclusion=inclusion, **generated))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    nav = set(pages(config.nav))
    folder = posixpath.dirname(page.file.src_uri)
    return LINK.sub(lambda link: posixpath.relpath(_shown(_joined(folder, link[0]), nav), folder or "."), markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    def mathml(math: re.Match[str]) -> str:
        converted = convert(html.unescape(math[2]), display="block" if math[1] == "div" else "inline")
        return FUNCTION.sub(r'<mo lspace="0.17em" rspace="0.17em">\1</mo>', converted)

    # In a table, GitHub needs a backslash before a pipe within code; Python-Markdown prints it
    content = re.sub(r"<code>[^<]*</code>", lambda code: code[0].replace(r"\|", "|"), content)
    return MATH.sub(mathml, content)


def _joined(folder: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(folder, link))


def _linked(markdown: str, path: str) -> list[str]:
    """The files and folders that a page links to, as paths from the root."""
    return [_joined(posixpath.dirname(path), link) for link in LINK.findall(markdown)]


def _shown(path: str, nav: set[str]) -> str:
    """The page that shows a file or folder of the repository; the file itself if it is copied."""
    api = f"api/{path.removesuffix('.py').replace('/', '.')}.md"
    if api in nav:
        return api
    if path.endswith(".ipynb"):
        return path.removesuffix("ipynb") + "md"
    return f"source/{path}.md" if Path(path).suffix in LANGUAGES and (ROOT / path).exists() else path


def _source(path: str) -> str:
    """A page with the contents of a file, or of the YAML files in a folder."""
    found = sorted((ROOT / path).rglob("*.yaml")) if (ROOT / path).is_dir() else [ROOT / path]
    text = f"# `{path}`\n"
    for file in found:
        if len(found) > 1:
            text += f"\n## `{file.relative_to(ROOT / path).as_posix()}`\n"
        text += f"\n````{LANGUAGES[file.suffix]}\n{file.read_text(encoding='utf-8')}````\n"
    return text


def _notebook(path: Path) -> str:
    """The cells of a notebook and their outputs, as Markdown."""
    blocks = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        blocks.append(source if cell["cell_type"] == "markdown" else f"````python\n{source}\n````")
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                image = data["image/png"].strip()
                blocks.append(f'<img alt="Output of the cell above" src="data:image/png;base64,{image}">')
            elif "text/html" in data:
                blocks.append(DATAFRAME_STYLE.sub("", "".join(data["text/html"])))
            else:
                text = html.escape("".join(data["text/plain"]).rstrip())
                blocks.append(f'<pre class="output">{text}</pre>')
    return "\n\n".join(blocks)
