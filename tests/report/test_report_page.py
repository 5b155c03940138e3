"""The report page of real run folders and result files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from conftest import ROOT
from report_pages import Tags, add_results, data_of, page
from run_folders import FAILED, INTERRUPTED, make

from ssa.errors import UserError
from ssa.record.runs import load
from ssa.report.page.results import read_results
from ssa.report.page.run_data import POINTS
from ssa.report.page.settings import ReportSettings
from ssa.report.page.write import PAPER, SCRIPTS, write
from ssa.report.page.write import page as build_page
from ssa.report.tables import Table, TableCell
from ssa.viz.plot_style import figure, save
from ssa.viz.rule_style import STYLES

EVIL = """</script><img src=x onerror="alert(1)"><!--<script>&amp;'\x00\ud800"""


def flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, one with damaged rows, and an experiment."""
    place = tmp_path_factory.mktemp("whole")
    made = make(place / "outputs", 20)
    with (made[3] / "metrics.jsonl").open("a") as file:
        file.write("{not JSON}\n")
    start = add_results(place, "demo", "laptop")
    run = TableCell("1.23", "value", (made[0].name,))
    table = Table("A table", "Its caption.", ("row", "ours"), ((TableCell("one"), run),))
    Path(f"{start}summary.json").write_text(json.dumps(asdict(table)))
    with figure(3, 2) as drawing:
        drawing.add_subplot().plot([1, 2, 3], [1, 3, 2])
        save(drawing, Path(f"{start}curve"))
    add_results(place, "demo", "smoke", verdict="does not hold")
    (place / "experiments" / "demo" / "README.md").write_text("# Table 9: a demonstration\n")
    return place


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(whole, tmp_path / "copy")


def test_the_same_folders_give_the_same_bytes(folder: Path) -> None:
    pages = []
    for seed in ("1", "2"):  # of the order of sets
        arguments = ["runs=outputs", "experiments=experiments", f"to=report-{seed}"]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, ROOT / "report.py", *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert f"report-{seed}/index.html" in done.stdout
        assert os.listdir(folder / f"report-{seed}") == ["index.html"]
        pages.append((folder / f"report-{seed}" / "index.html").read_bytes())
    assert pages[0] == pages[1]


def test_every_run_is_listed_with_its_problems(folder: Path) -> None:
    text = page(folder)
    runs = {run["id"]: run for run in data_of(text)["runs"]}
    folders = sorted(path.parent for path in (folder / "outputs").rglob("config.yaml"))
    assert sorted(runs) == sorted(path.name for path in folders)
    assert len(runs) == 20
    damaged = [run for run in runs.values() if run["damage"]]
    assert ["metrics.jsonl changed" in run["damage"] for run in damaged] == [True]
    assert damaged[0]["curves"] == {}
    status = [run["shown"][1] for run in runs.values()]
    assert (status.count("failed"), status.count("interrupted")) == (1, 1)  # numbers FAILED and INTERRUPTED
    assert max(FAILED, INTERRUPTED) < 20
    failed = next(run for run in runs.values() if run["shown"][1] == "failed")
    assert "not finite" in failed["error"]
    assert failed["curves"]
    assert "1 item, 20 runs: 1 failed, 18 finished, 1 interrupted; 1 damaged." in " ".join(Tags(text).text.split())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("environment.json", '{"machine": "x", "packages": [1], "git": "y"}'),
        ("environment.json", "[" * 100_000),
        ("metrics.jsonl", f'{{"step": 1, "tokens": 1, "val/loss": 1{400 * "0"}}}\n'),
    ],
)
def test_invalid_file_contents_hide_no_run(folder: Path, name: str, content: str) -> None:
    path = next((folder / "outputs" / "main").rglob(name))
    path.write_text(content)
    run = next(run for run in data_of(page(folder))["runs"] if run["id"] == path.parent.name)
    assert f"{name} changed" in run["damage"]


def test_a_missing_file_hides_no_run(folder: Path) -> None:
    gone = sorted((folder / "outputs").rglob("config.yaml"))[5]
    gone.unlink()
    data = data_of(page(folder))
    run = next(run for run in data["runs"] if run["id"] == gone.parent.name)
    assert "config.yaml" in run["damage"]
    assert run["curves"]


def test_curves_are_measured_points(folder: Path) -> None:
    path = next((folder / "outputs").rglob("*-ssa-*/metrics.jsonl"))
    rows = [{"step": step, "tokens": 10 * step, "train/loss": 7 - step / 1000.001} for step in range(1, 501)]
    rows[-1] |= {f"val/temperature/query/layer_0{layer}/mean": 1 + layer / 7 for layer in range(3)}
    rows[0]["train/loss"] = "NaN"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = data_of(page(folder))
    run = next(run for run in data["runs"] if run["id"] == path.parent.name)
    axis, values = run["curves"]["0"]
    tokens = data["axes"][axis]
    assert len(tokens) == len(values) == POINTS
    assert (tokens[0], tokens[-1]) == (10, 5000)
    assert values[0] is None
    for number, value in list(zip(tokens, values, strict=True))[1:]:
        assert value == float(f"{rows[number // 10 - 1]['train/loss']:.5g}")
    number = data["curves"].index("Query temperature, mean over layers")
    axis, values = run["curves"][str(number)]
    assert (data["axes"][axis], values) == ([5000], [float(f"{1 + 1 / 7:.5g}")])


def test_configs_can_be_reconstructed(folder: Path) -> None:
    data = data_of(page(folder))
    for run in data["runs"]:
        values = {**dict(enumerate(data["common"])), **{int(key): value for key, value in run["config"].items()}}
        shown = {key: values[number] for number, key in enumerate(data["keys"])}
        config = yaml.safe_load((next((folder / "outputs").rglob(f"{run['id']}/config.yaml"))).read_text())
        wanted = dict(flat(config))
        assert len(wanted) > 80
        for key, value in wanted.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            text = value if isinstance(value, str | None) else json.dumps(value)
            assert (float(shown.pop(key)) == value) if is_number else (shown.pop(key) == text)
        assert {key for key, value in shown.items() if value is not None} <= {"commit", "data_hash"}
    assert sum(len(run["config"]) for run in data["runs"]) < 15 * len(data["runs"])


def test_results_are_those_of_the_largest_scale(folder: Path) -> None:
    tags = Tags(page(folder))
    text = " ".join(tags.text.split())
    assert "✓ holds" in text
    assert "✗" not in text
    assert "−0.5 [−0.612, −0.4]" in text
    assert "a difference; claimed: lower than 0" in text
    assert "scale=laptop. python -m experiments demo scale=laptop" in text
    assert "Table 9: a demonstration" in text
    assert [cell for cell in tags.all("td") if "gpt2-nano" in (cell.get("title") or "")]
    add_results(folder, "demo", "gpu", verdict="undecided", claim="on the GPU, SSA is better")
    text = Tags(page(folder)).text
    assert "On the GPU, SSA is better" in text
    assert text.count("SSA is better") == 2, "as the main claim, and in the list of claims"
    assert "scale=laptop." not in text
    assert "python -m experiments demo scale=gpu" in text


def test_the_smaller_picture_is_taken(folder: Path) -> None:
    start = folder / "experiments" / "demo" / "results"
    sizes = {suffix: (start / f"laptop_curve.{suffix}").stat().st_size for suffix in ("svg", "png")}
    smaller = min(sizes, key=lambda suffix: sizes[suffix])
    (picture,) = Tags(page(folder)).all("img")
    assert (picture["src"] or "").startswith(f"data:image/{smaller.replace('svg', 'svg+xml')};base64,")
    assert (picture["width"], picture["height"]) == ("288", "192")
    assert picture["alt"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("laptop_summary.json", '{"title": 1}'),
        ("laptop_summary.json", "[" * 100_000),
        ("laptop_conclusions.csv", f'claim,mean\n"{200_000 * "x"}",1\n'),
    ],
)
def test_a_damaged_result_is_named(folder: Path, name: str, content: str) -> None:
    (folder / "experiments" / "demo" / "results" / name).write_text(content)
    assert f"{name} cannot be read" in page(folder)


def test_an_experiment_without_results_shows_its_command(folder: Path) -> None:
    (folder / "experiments" / "later").mkdir()
    (folder / "experiments" / "later" / "config.yaml").write_text("purpose: x\n")
    assert "python -m experiments later scale=laptop" in page(folder)


def test_text_from_data_stays_text(folder: Path) -> None:
    kept = "".join("\N{REPLACEMENT CHARACTER}" if c in "\x00\ud800" else c for c in EVIL)
    start = add_results(folder, "evil", "laptop", claim=EVIL.replace("\ud800", ""), quantity=EVIL, expected=EVIL)
    table = Table(EVIL, EVIL, (EVIL, "b"), ((TableCell(EVIL), TableCell(EVIL, "value", (EVIL,), EVIL)),))
    Path(f"{start}summary.json").write_text(json.dumps(asdict(table)))
    (folder / "experiments" / "evil" / "README.md").write_text(f"# {EVIL}\n", errors="replace")
    run = sorted((folder / "outputs").rglob("config.yaml"))[0].parent
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["experiment"] = config["data"]["path"] = EVIL.replace("\ud800", "")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    environment = json.loads((run / "environment.json").read_text())
    environment["python"] = EVIL
    (run / "environment.json").write_text(json.dumps(environment))
    text = page(folder)
    tags = Tags(text)
    assert "cannot be read" not in tags.text
    assert len(tags.all("script")) == 2
    assert all((picture["src"] or "").startswith("data:image/") for picture in tags.all("img"))
    assert not [name for _, attributes in tags.found for name in attributes if name.startswith("on")]
    assert kept in tags.text
    shown = next(row["shown"] for row in data_of(text)["runs"] if row["id"] == run.name)
    assert shown[0] == EVIL.replace("\ud800", "")


def test_runs_have_variants_with_vanilla_and_maps(folder: Path) -> None:
    data = data_of(page(folder))
    variants = data["variants"]
    for one in variants:
        members = [data["runs"][number] for number in one["runs"].values()]
        assert {run["color"] for run in members} == {one["color"]}
        if one["base"] is not None:
            assert one["color"] != STYLES["none"].color
            assert variants[one["base"]]["color"] == STYLES["none"].color
    assert any(one["base"] is not None for one in variants)
    run = next(run for run in data["runs"] if run["color"] == STYLES["ssa"].color and run["maps"])
    summary = json.loads(next((folder / "outputs").rglob(f"{run['id']}/summary.json")).read_text())
    entropy, temperature = run["maps"]["entropy"], run["maps"]["temperature"]
    assert entropy[1][2] == float(f"{summary['best/val/attention_entropy/layer_01/head_02']:.5g}")
    query = data["projections"].index("query")
    assert run["maps"]["query"][1][2] == float(f"{summary['best/val/temperature/query/layer_01/head_02']:.5g}")
    assert temperature[1][query] == float(f"{summary['best/val/temperature/query/layer_01/mean']:.5g}")


def test_captions_and_files_of_figures(folder: Path) -> None:
    start = folder / "experiments" / "demo" / "results"
    (start / "laptop_curve.txt").write_text("What <b>is</b> drawn.\n")
    (start / "laptop_curve.pdf").write_bytes(b"%PDF")
    text = page(folder)
    assert "What &lt;b&gt;is&lt;/b&gt; drawn." in text
    assert {"laptop_curve.pdf", "laptop_curve.svg", "laptop_curve.png"} <= {
        Path(link["href"] or "").name for link in Tags(text).all("a")
    }


def test_the_page_needs_no_network(folder: Path) -> None:
    text = page(folder)
    for _, attributes in Tags(text).found:
        for name in {"src", "href", "srcset", "action", "poster"} & attributes.keys():
            is_link = name == "href" and "rel" not in attributes  # followed by the reader alone
            assert is_link or (attributes[name] or "").startswith("data:")
    own = re.sub(r"base64,[\w+/=]+", "", text).replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    own = own.replace(f'<a href="{PAPER}">', "")
    assert not re.search(r"https?:|url\(|@import|\bfetch\b|XMLHttpRequest|\bimport\b\s*\(|sendBeacon|WebSocket", own)
    assert sum((ROOT / "ssa/report/page" / name).stat().st_size for name in (*SCRIPTS, "page.css")) < 40e3


def test_links_have_targets(folder: Path) -> None:
    tags = Tags(page(folder))
    ids = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {link["href"] or "" for link in tags.all("a")} - {PAPER}
    assert {link for link in links if link.startswith("#")} <= {f"#{name}" for name in ids}
    files = [folder / "report" / unquote(link) for link in links if not link.startswith("#")]
    assert {path.name for path in files} >= {"README.md", "laptop_conclusions.csv", "laptop_summary.json"}
    assert all(path.is_file() for path in files)
    labeled = {
        attributes[name] for _, attributes in tags.found for name in ("for", "aria-labelledby") if name in attributes
    }
    assert labeled <= set(ids)


@pytest.mark.parametrize("has_runs", [True, False])
def test_it_is_valid_html(folder: Path, tmp_path: Path, has_runs: bool) -> None:
    html5lib = pytest.importorskip("html5lib", reason="html5lib, of the test requirements, checks the HTML")
    place = folder if has_runs else tmp_path / "new"
    (place / "outputs").mkdir(parents=True, exist_ok=True)
    (place / "experiments").mkdir(exist_ok=True)
    html5lib.HTMLParser(strict=True).parse(page(place))


def test_runs_of_another_machine_have_no_curves(folder: Path) -> None:
    """Such as runs from Weights & Biases, whose folder is a URL."""
    runs = load(folder / "outputs")
    runs["folder"] = "https://wandb.example/entity/ssa/runs/1"
    text = build_page(runs, read_results(folder / "experiments"), source="wandb:entity/ssa", experiments="experiments")
    data = data_of(text)
    assert len(data["runs"]) == 20
    assert not any(run["curves"] for run in data["runs"])
    assert data["runs"][0]["shown"][6] > 0  # the loss
    assert "unknown" in Tags(text).text


def test_a_page_without_runs_and_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = write(ReportSettings()).read_text(encoding="utf-8")
    assert "python train.py" in text
    assert "<script" not in text


def test_mistakes_are_named(folder: Path) -> None:
    for field in ("runs", "experiments"):
        with pytest.raises(UserError, match=f"^{field}=nowhere: no such folder"):
            page(folder, **{field: "nowhere"})
    (folder / "report").write_text("a file")
    with pytest.raises(UserError, match=r"^to=.*report: cannot be written"):
        page(folder)
    assert (folder / "report").read_text() == "a file"


# Of a child of a small process: what a large one starts counts that one's memory as its own.
MEASURE = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss)
"""


@pytest.mark.slow
def test_two_thousand_runs(tmp_path: Path) -> None:
    make(tmp_path / "outputs", 2000)
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments")  # where other programs may write meanwhile
    program = [sys.executable, str(ROOT / "report.py")]
    command = [sys.executable, "-c", MEASURE, *program]
    sizes = []
    for _ in range(2):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        seconds, kib = map(float, done.stdout.splitlines()[-1].split())
        # Processor time, so that other work on the machine does not count; alone, the clock shows as much.
        assert seconds < 20
        assert kib < 1e6
        sizes.append((tmp_path / "outputs/report/index.html").read_bytes())
    assert len(sizes[0]) < 12e6
    assert sizes[0] == sizes[1]


def test_grids_on_other_text_and_own_grids_are_shown_but_not_counted(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "all")
    place = tmp_path / "all"
    for path in ("demo/1a2b3c4d", "mine"):
        at = place / "outputs" / "experiments" / path
        shutil.copytree(place / "experiments" / "demo" / "results", at)
        settings = {"train": ["data=text", "data.train=books/*.txt"]}
        name = path.partition("/")[0]
        provenance = {"experiment": name, "settings": settings, "command": f"python -m experiments {name}.yaml"}
        (at / "laptop_provenance.json").write_text(json.dumps(provenance))
    before, after = Tags(page(whole)), Tags(page(place))
    assert "Other text, own grids" not in before.text
    assert "Other text, own grids" in after.text
    assert after.text.count("on data=text data.train=books/*.txt") == 2
    assert "python -m experiments mine.yaml" in after.text
    tally = [tags.text.partition("Scale of the evidence")[0] for tags in (before, after)]
    assert tally[0] == tally[1]
    for link in after.all("a"):
        address = unquote(link["href"] or "")
        assert address.startswith(("#", "http")) or (place / "report" / address).exists(), address
