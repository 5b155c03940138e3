"""The installed package: commands do what the programs at the root do, in any folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from ssa import bundle
from ssa.command_line import installed

Ran = subprocess.CompletedProcess[str]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
WITHOUT_ARGUMENTS = ("ssa-experiments", "ssa-sweeps")  # they list what there is
SMALL = ("scale=smoke", "logger=none", "trainer.steps=4", "optim.warmup_steps=1", "data.tokenizer=bpe-512")
OWN = {
    "model/temperature/mine.yaml": "# my rule\ndefaults: [none, _self_]\nname: mine\n"
    "query: {token: shared, position: none, multiplier: none}\n",
    "model/size/tiny.yaml": "# @package model\n# tiny\nsize: tiny\nn_layer: 1\nn_head: 2\nd_model: 16\n",
    "model/my_gpt.yaml": "# my model\ndefaults: [gpt2, override size: tiny, _self_]\nname: my_gpt\n",
    "data/mine.yaml": "# my text\ndefaults: [text, _self_]\ntrain: topics.txt\n",
}


def ran(command: list[str | Path], folder: Path, **environment: str) -> Ran:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env={**inherited, **environment}, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path, small_text: Path) -> Path:
    """A folder outside the checkout, with a text and a ``my_conf/`` in it."""
    folder = tmp_path / "elsewhere"
    for name, text in OWN.items():
        (folder / "my_conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "my_conf" / name).write_text(text)
    shutil.copyfile(small_text, folder / "topics.txt")
    return folder


# The bundle, and an installation as pip makes it, but for the metadata


def test_every_file_that_programs_read_is_bundled() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = {Path(name) for name in listed.stdout.split("\0") if (ROOT / name).is_file()}
    found = {path for path in bundle.bundled(ROOT) if path in tracked}
    read = {
        path for path in tracked if path.parts[0] in ("conf", "experiments", "sweeps") and "results" not in path.parts
    }
    assert read - found == set()
    records = {path for path in tracked if path.parts[0] == "experiments" and path.name.endswith("_records.parquet")}
    assert records
    assert records - found == set()
    assert not [path for path in found if path.suffix in (".png", ".svg", ".pdf", ".html")]
    assert sum((ROOT / path).stat().st_size for path in found) < 4e6


def test_each_command_runs_a_program_that_is_bundled() -> None:
    found = {path.as_posix() for path in bundle.bundled(ROOT)}
    for name, entry in SCRIPTS.items():
        module, _, function = entry.partition(":")
        assert (module, callable(getattr(installed, function))) == (installed.__name__, True)
        assert name == f"ssa-{function}"
        assert {f"{function}.py", f"{function}/__main__.py"} & found
    assert {f"{Path(program).stem}" for program in bundle.PROGRAMS} <= {name.removeprefix("ssa-") for name in SCRIPTS}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``sys.path`` with the package and its bundle, outside the checkout."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "ssa", site / "ssa", ignore=shutil.ignore_patterns("__pycache__"))
    bundle.copy(ROOT, site / "ssa" / "bundled")
    return site


@pytest.fixture
def launch(site: Path, folder: Path) -> Callable[..., Ran]:
    """A function that runs a command, as its script in ``bin`` does."""

    def launch(command: str, *arguments: str) -> Ran:
        module, _, function = SCRIPTS[command].partition(":")
        code = f"from {module} import {function}; {function}()"
        return ran([sys.executable, "-P", "-c", code, *arguments], folder, PYTHONPATH=str(site))

    return launch


@pytest.mark.parametrize("command", SCRIPTS)
def test_a_help_page_names_the_command_and_files_that_exist(
    command: str, launch: Callable[..., Ran], site: Path
) -> None:
    done = launch(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: {command} " in done.stdout
    assert not re.search(r"python |\.py KEY", done.stdout.partition("where to look")[0])
    assert str(ROOT) not in done.stdout
    if command in WITHOUT_ARGUMENTS:
        assert str(site / "ssa" / "bundled") in done.stdout
        return
    assert f"\n  {command} " in done.stdout
    where = done.stdout.partition("where to look, in ")[2].splitlines()
    assert where[0] == str(site)
    assert len(where) > 3
    assert [line for line in where[1:] if not (site / line.split()[0]).exists()] == []


@pytest.mark.parametrize("command", SCRIPTS)
def test_a_mistake_is_one_line(command: str, launch: Callable[..., Ran]) -> None:
    done = launch(command, "nope=1") if command not in WITHOUT_ARGUMENTS else launch(command, "nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: nope: [^\n]+\n", done.stderr)


@pytest.mark.slow
def test_all_experiments_and_rules_are_there(site: Path, folder: Path) -> None:
    code = (
        "import sys; from ssa import paths; sys.path.insert(0, str(paths.ROOT))\n"
        "from experiments.engine.experiment import all_experiments\n"
        "from ssa.command_line.compose import configured\n"
        "from ssa.rule_names import rule_names\n"
        "for one in all_experiments():\n"
        "    one.settings(**one.values('smoke'), scale='smoke'); one.references()\n"
        "    print(one.name, one.results('outputs'))\n"
        "for name in rule_names(): print(configured('scale=smoke', f'model/temperature={name}').model.temperature.name)"
    )
    done = ran([sys.executable, "-P", "-c", code], folder, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    names = sorted(path.parent.name for path in ROOT.glob("experiments/*/config.yaml"))
    rules = sorted(path.stem for path in ROOT.glob("conf/model/temperature/*.yaml"))
    expected = [f"{name} experiments/{name}/results" for name in names] + rules
    assert done.stdout.splitlines() == expected


@pytest.mark.slow
def test_a_users_folder_adds_options(launch: Callable[..., Ran], folder: Path) -> None:
    own = ("--config-dir", "my_conf")
    options = ("model=my_gpt", "model/temperature=mine", "model/size=tiny", "data=mine")
    done = launch("ssa-train", *own, *options, "--cfg", "job", "--resolve")
    assert (done.returncode, done.stderr) == (0, "")
    assert {"  name: my_gpt", "  size: tiny", "    name: mine", "  train: topics.txt"} <= set(done.stdout.splitlines())
    listed = launch("ssa-train", *own, "--help", "data").stdout
    assert re.search(r"^  mine +my text$", listed, re.MULTILINE)
    assert launch("ssa-train", *own, "data=mne").stderr.startswith(
        "error: data=mne: no such option, did you mean mine?"
    )
    file = folder / "my_conf" / "model" / "temperature" / "mine.yaml"
    file.write_text(file.read_text().replace("name: mine\n", ""))
    done = launch("ssa-train", *own, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: model/temperature=mine: its file must set name: mine, not none\n"


# The wheel


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, beside the dependencies of the environment that runs the tests."""
    work = tmp_path_factory.mktemp("wheel")
    source, folder = work / "source", work / "environment"
    for name in ("pyproject.toml", "README.md", "LICENSE", "ssa", "conf", "experiments", "sweeps", *bundle.PROGRAMS):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    made = ran([*pip, "wheel", "-q", "--no-deps", source, "-w", work], work)
    assert made.returncode == 0, made.stderr
    (wheel,) = work.glob("*.whl")
    venv.create(folder, symlinks=True)
    made = ran([*pip, "--python", folder / "bin" / "python", "install", "-q", "--no-deps", wheel], work)
    assert made.returncode == 0, made.stderr
    # Packages on a path of a .pth file are found, but its own .pth files, as of an editable installation, are not read
    paths = sysconfig.get_paths()
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join({paths["purelib"], paths["platlib"]}))
    return folder


@pytest.fixture
def run(environment: Path, folder: Path) -> Callable[..., Ran]:
    """A function that runs a command of the environment, which must succeed."""

    def run(command: str, *arguments: str) -> Ran:
        done = ran([environment / "bin" / command, *arguments], folder)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


def files(environment: Path) -> set[Path]:
    (packages,) = environment.glob("lib/python*/site-packages")
    return {path for path in packages.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_the_wheel_trains_generates_evaluates_exports_and_reports(
    environment: Path, run: Callable[..., Ran], folder: Path
) -> None:
    before = files(environment)
    (packages,) = environment.glob("lib/python*/site-packages")
    assert {path.name.partition("-")[0] for path in packages.iterdir()} == {"ssa", "dependencies.pth"}
    made = run("ssa-train", "scale=smoke", "logger=none").stdout.splitlines()[-1]
    assert Path(made).is_relative_to(folder / "outputs")
    own = ("--config-dir", "my_conf", "data=mine", "model=my_gpt", "model/size=tiny", "model/temperature=mine")
    assert "my_gpt" in run("ssa-train", *own, *SMALL).stdout
    seeds = ("-m", "data=text", "data.train=topics.txt", "model=gpt2,ssa_gpt2", "seed=0,1")
    assert "Runs that differ in their seed alone" in run("ssa-train", *seeds, *SMALL).stdout
    assert run("ssa-generate", f"run={made}", "prompt=The garden", "max_new_tokens=4").stdout.startswith("The garden")
    assert "perplexity" in run("ssa-evaluate", f"run={made}", "tasks=perplexity,passkey", "trials=2").stdout
    for form in ("auto", "ssa"):
        run("ssa-export", f"run={made}", f"to=exported-{form}", f"as={form}")
        assert run("ssa-generate", f"init_from=exported-{form}", "prompt=The", "max_new_tokens=2").stdout
    run("ssa-report")
    assert Path(made).name in (folder / "outputs" / "report" / "index.html").read_text()
    assert files(environment) == before


@pytest.mark.slow
def test_the_wheel_runs_experiments(environment: Path, run: Callable[..., Ran], folder: Path) -> None:
    before = files(environment)
    results = folder / "experiments" / "fig3_token_graph" / "results"
    assert run("ssa-experiments", "fig3_token_graph", "scale=smoke").stdout.endswith(
        f"results: {results.relative_to(folder)}/smoke_*\n"
    )
    assert (results / "smoke_summary.csv").is_file()
    text = "train=data=text,data.train=topics.txt,data.tokenizer=bpe-512,trainer.steps=4,optim.warmup_steps=1"
    done = run("ssa-experiments", "compare", "models=gpt2,ssa_gpt2", "scale=smoke", "seeds=2", text)
    assert "ssa_gpt2" in done.stdout
    run("ssa-experiments", "ablation_qkv", "scale=overnight", "render=true")  # from the records in the wheel
    name = Path("experiments", "ablation_qkv", "results", "overnight_summary.csv")
    assert (folder / name).read_bytes() == (ROOT / name).read_bytes()
    run("ssa-report")
    page = (folder / "outputs" / "report" / "index.html").read_text()
    title = (ROOT / "experiments" / "fig3_token_graph" / "README.md").read_text().splitlines()[0].removeprefix("# ")
    assert title in page
    assert files(environment) == before


@pytest.mark.slow
def test_the_wheel_adapts_a_model(environment: Path, folder: Path) -> None:
    code = (
        "import ssa; from transformers import GPT2Config, GPT2LMHeadModel\n"
        "model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=32))\n"
        "ssa.print_trainable_parameters(ssa.adapt(model, 'ssa')); print(ssa.__file__)"
    )
    done = ran([environment / "bin" / "python", "-c", code], folder)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).is_relative_to(environment)
