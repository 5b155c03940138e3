"""The report page in a real browser.

Needs chromium and Playwright (``pip install playwright``; no browser of its own).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from run_folders import make

from ssa.report.page.settings import ReportSettings
from ssa.report.page.write import write
from ssa.report.tables import Table, TableCell

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EXPERIMENTS = ROOT / "experiments"
SIZES = {"phone": (390, 844), "desk": (1400, 900)}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """The page of generated runs and the experiments of this repository, one with a table that lists runs."""
    folder = tmp_path_factory.mktemp("report")
    runs = make(folder / "outputs", 120)
    (runs[1] / "metrics.jsonl").write_text("{not JSON}\n")
    shutil.copytree(EXPERIMENTS, folder / "experiments", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    results = folder / "experiments" / "demo" / "results"
    results.mkdir(parents=True)
    cell = TableCell("1.23", "value", (runs[4].name, runs[5].name))
    table = Table("A table", "", ("row", "ours"), ((TableCell("one"), cell),))
    (results / "laptop_summary.json").write_text(json.dumps(asdict(table)))
    return write(
        ReportSettings(runs=str(folder / "outputs"), experiments=str(folder / "experiments"), to=str(folder))
    ), runs


@pytest.fixture(params=list(SIZES))
def page(request: pytest.FixtureRequest, made: tuple[Path, list[Path]]) -> Iterator[Any]:
    """The page without drawn runs; fails if it reports errors or makes network requests."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if not CHROMIUM:
        pytest.skip("no chromium on the PATH")
    width, height = SIZES[request.param]
    wrong: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": width, "height": height}, has_touch=request.param == "phone")
        opened.on("console", lambda message: wrong.append(message.text))
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("request", lambda asked: wrong.append(asked.url) if asked.url.startswith("http") else None)
        opened.goto(made[0].as_uri())
        assert opened.locator("#charts path").count() > 0  # something is drawn from the start
        assert opened.locator("details[open]").count() == 0
        opened.evaluate("document.querySelectorAll('#runs > details').forEach((part) => { part.open = true; })")
        opened.click("#clear")
        yield opened
        browser.close()
    assert wrong == []


def find(page: Any, run: Path) -> Any:
    page.fill("#filter", run.name)
    return page.locator("#run-table tbody tr")


def rows_of(run: Path, metric: str) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["tokens"], float(f"{row[metric]:.5g}")) for row in rows if metric in row]


def test_a_click_draws_a_run_and_the_pointer_shows_values(page: Any, made: tuple[Path, list[Path]]) -> None:
    run = made[1][0]
    assert page.locator("#charts path").count() == 0
    row = find(page, run)
    assert row.count() == 1
    row.click()
    assert row.locator("input").is_checked()
    assert page.locator("#legend li").all_inner_texts() == [run.name]
    chart = page.locator(".chart", has_text="Validation loss")
    chart.scroll_into_view_if_needed()
    points, marks = rows_of(run, "val/loss"), chart.locator("circle[r='2.5']")
    assert marks.count() == len(points) == 5
    for number, (tokens, loss) in enumerate(points):
        box = marks.nth(number).bounding_box()
        at = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.move(*at)
        reading = chart.locator(".reading").inner_text()
        assert reading == f"{loss:g} at {tokens:,} tokens: {run.name}"
    row.click()
    assert page.locator("#charts path").count() == 0


def test_touch_shows_values(page: Any, made: tuple[Path, list[Path]]) -> None:
    if page.viewport_size["width"] > 390:
        pytest.skip("a touch screen is the phone's")
    find(page, made[1][0]).locator("input").check()
    mark = page.locator(".chart", has_text="Validation loss").locator("circle[r='2.5']").nth(2)
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.touchscreen.tap(box["x"] + 2, box["y"] + 2)
    tokens, loss = rows_of(made[1][0], "val/loss")[2]
    assert f"{loss:g} at {tokens:,} tokens" in page.locator(".chart", has_text="Validation loss").inner_text()


def test_keyboard_navigation(page: Any, made: tuple[Path, list[Path]]) -> None:
    runs = made[1][0], made[1][8]
    for run in runs:
        find(page, run).locator("input").focus()
        page.keyboard.press("Space")
        assert page.evaluate("document.activeElement.dataset.run") is not None  # the focus stays with the run
    chart = page.locator(".chart", has_text="Training loss")
    chart.locator("[tabindex]").focus()
    reading, (first, second) = chart.locator(".reading"), (rows_of(run, "train/loss") for run in runs)
    page.keyboard.press("ArrowRight")
    assert reading.inner_text() == f"{first[0][1]:g} at {first[0][0]:,} tokens: {runs[0].name}"
    page.keyboard.press("End")
    assert reading.inner_text().startswith(f"{first[-1][1]:g} at")
    page.keyboard.press("ArrowDown")
    assert reading.inner_text().endswith(runs[1].name)
    page.keyboard.press("Home")
    assert reading.inner_text().startswith(f"{second[0][1]:g} at")
    page.keyboard.press("Escape")
    assert reading.inner_text() == ""


def test_lines_differ_without_color(page: Any, made: tuple[Path, list[Path]]) -> None:
    for run in made[1][8:14]:
        find(page, run).click()
    lines = page.locator("#legend line")
    dashes = [lines.nth(number).get_attribute("stroke-dasharray") for number in range(lines.count())]
    assert len(set(dashes)) == 6


def test_differences_between_two_runs(page: Any, made: tuple[Path, list[Path]]) -> None:
    one, two = made[1][0], made[1][4]
    for run in (one, two):
        find(page, run).click()
    shown = {
        cells[0]: cells[1:]
        for row in page.locator("#difference-table tbody tr").all()
        for cells in [row.locator("th, td").all_inner_texts()]
    }
    first, second = (yaml.safe_load((run / "config.yaml").read_text()) for run in (one, two))
    assert shown["optim.lr"] == [repr(first["optim"]["lr"]), repr(second["optim"]["lr"])]
    assert shown["model.temperature.name"] == [config["model"]["temperature"]["name"] for config in (first, second)]
    assert "seed" not in shown
    page.select_option("#second", label=one.name)
    assert page.locator("#difference-table tbody tr").count() == 0


def test_the_table_is_filtered_sorted_and_paged(page: Any, made: tuple[Path, list[Path]]) -> None:
    rows = page.locator("#run-table tbody tr")
    assert rows.count() == 50
    page.click("#pager button:has-text('Next')")
    assert "51–100 of 120" in page.locator("#pager").inner_text()
    page.fill("#filter", "failed")
    assert rows.count() == 3
    assert "TrainingDiverged" in rows.first.inner_text()
    page.fill("#filter", "damaged")
    assert rows.count() == 1
    assert "⚠" in rows.inner_text()
    page.fill("#filter", "")
    column = page.locator("#run-table thead th", has_text="loss")
    column.locator("button").click()
    losses = [float(text) for text in page.locator("#run-table tbody td:nth-child(8)").all_inner_texts()]
    assert losses == sorted(losses)
    assert column.get_attribute("aria-sort") == "ascending"
    column.locator("button").click()
    assert column.get_attribute("aria-sort") == "descending"
    page.click("text=Draw all matches")
    assert page.locator("#legend li").count() == 24
    assert "at most 24" in page.locator("#matches").inner_text()


def test_a_cell_links_to_its_runs(page: Any, made: tuple[Path, list[Path]]) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = part.matches('.items *'); })")
    page.click(".of-runs a:has-text('1.23')")
    assert page.locator("#legend li").all_inner_texts() == [run.name for run in made[1][4:6]]
    assert page.evaluate("location.hash") == "#curves"
    assert page.locator("#curves").get_attribute("open") is not None


def test_seeds_are_averaged_with_a_band(page: Any, made: tuple[Path, list[Path]]) -> None:
    link = page.locator("#seeds tbody tr").first.locator("a").first
    ids = link.get_attribute("title").removeprefix("runs: ").split(", ")
    link.click()
    (name,) = page.locator("#legend li").all_inner_texts()
    assert name.endswith(f"mean of {len(ids)} seeds")
    chart = page.locator(".chart", has_text="Validation loss")
    assert chart.locator("path.band").count() == 1
    folders = [run for run in made[1] if run.name in ids]
    values = [rows_of(run, "val/loss")[-1][1] for run in folders]
    chart.locator("[tabindex]").focus()
    page.keyboard.press("End")
    reading = chart.locator(".reading").inner_text()
    shown, low, high = (
        float(reading.split(" at ")[0].translate(str.maketrans("()", "  ")).split()[at]) for at in (0, 1, 3)
    )
    assert shown == pytest.approx(sum(values) / len(values), rel=1e-4)
    assert (low, high) == (min(values), max(values))


def test_the_difference_is_to_vanilla_at_the_same_seed(page: Any, made: tuple[Path, list[Path]]) -> None:
    configs = {run: yaml.safe_load((run / "config.yaml").read_text()) for run in made[1]}

    def place(run: Path) -> tuple[Any, ...]:
        return configs[run]["optim"]["lr"], configs[run]["seed"], configs[run]["model"]["temperature"]["name"]

    ssa = next(run for run in made[1][30:] if place(run)[2] == "ssa")
    vanilla = next(run for run in made[1] if place(run) == (*place(ssa)[:2], "none"))
    find(page, ssa).locator("input").check()
    page.check("#minus")
    chart = page.locator(".chart", has_text="Validation loss")
    chart.locator("[tabindex]").focus()
    page.keyboard.press("End")
    expected = rows_of(ssa, "val/loss")[-1][1] - rows_of(vanilla, "val/loss")[-1][1]
    assert float(chart.locator(".reading").inner_text().split()[0]) == pytest.approx(expected, abs=1e-4)
    page.check("#log-tokens")
    assert chart.locator("path").count() == 1


def test_entropy_and_temperature_by_layer_and_head(page: Any, made: tuple[Path, list[Path]]) -> None:
    run = next(run for run in made[1] if "-ssa-" in run.name and (run / "summary.json").exists())
    find(page, run).locator("input").check()
    summary = json.loads((run / "summary.json").read_text())
    cells = page.locator("#maps table").first.locator("tbody tr").nth(1).locator("td")
    assert float(cells.nth(1).inner_text()) == pytest.approx(
        summary["best/val/attention_entropy/layer_01/head_01"], abs=6e-4
    )
    assert float(page.locator("#maps table").nth(1).locator("tbody tr").nth(1).locator("td").nth(1).inner_text()) == (
        pytest.approx(summary["best/val/temperature/query/layer_01/head_01"], abs=6e-4)
    )
    assert "query" in page.locator("#maps table").nth(2).inner_text()


def test_the_page_is_short_until_it_is_unfolded(made: tuple[Path, list[Path]], page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = false; })")
    if page.viewport_size["width"] >= 1400:
        assert page.evaluate("document.documentElement.scrollHeight") < 4 * page.viewport_size["height"]
    first = page.locator(".answer, .tally, .scale")
    bottoms = [first.nth(at).bounding_box() for at in range(first.count())]
    assert len(bottoms) == 3
    assert all(box["y"] + box["height"] <= page.viewport_size["height"] for box in bottoms)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    low = page.evaluate(CONTRAST)
    assert low == []


def test_the_page_fits_its_window(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert not page.evaluate("[...document.images].some((image) => image.complete && !image.naturalWidth)")
    page.wait_for_timeout(200)  # for the observer
    cut = page.evaluate(CUT)
    assert cut == []


# Boxes that are wider than they show and say nothing of it, and text beyond the window outside of them
CUT = """() => [...document.querySelectorAll("main *, header *")].flatMap((element) => {
  const box = element.closest(".scroll, pre"), scrolls = box === element && box.scrollWidth > box.clientWidth + 1;
  if (scrolls && box.matches(".scroll") && !element.matches(".wide")) return [`no hint: ${element.ariaLabel}`];
  const { right, width } = element.getBoundingClientRect();
  return !box && width > 1 && right > innerWidth + 1 ? [`${element.tagName} ${element.className}: ${right}`] : [];
})"""
# Elements whose own text has a contrast under 4.5 (WCAG 2) to the nearest opaque background
CONTRAST = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => parse(color).slice(0, 3).map((part) => part / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  const found = [];
  for (const element of document.querySelectorAll("main *, header *")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    if (element.closest("svg, .map, button:disabled")) continue;
    let behind = element, back = "rgba(0, 0, 0, 0)";
    for (; behind && (parse(back)[3] ?? 1) === 0; behind = behind.parentElement)
      back = getComputedStyle(behind).backgroundColor;
    const [one, two] = [light(getComputedStyle(element).color), light(back)].sort((a, b) => b - a);
    const contrast = (one + 0.05) / (two + 0.05);
    if (contrast < 4.5) found.push(`${element.tagName} ${element.className}: ${contrast.toFixed(2)}`);
  }
  return [...new Set(found)];
}"""
