"""Optuna sweeps: invalid declarations, reproducible trials, kills, pruning, failures."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

optuna = pytest.importorskip("optuna")

from ssa.errors import UserError  # noqa: E402
from ssa.record.run_files import load_status, read_summary  # noqa: E402
from sweeps.__main__ import main  # noqa: E402
from sweeps.declaration import Sweep, load  # noqa: E402
from sweeps.study import open_study, sampler  # noqa: E402

LR = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}


@pytest.fixture
def declare(small_text: Path, tmp_path: Path) -> Callable[..., str]:
    """A function that writes a declaration of tiny runs, with its fields, and returns its path."""

    def declare(**fields: Any) -> str:
        small = ["scale=smoke", "model=gpt2", "data=text", f"data.train={small_text}", "data.tokenizer=bpe-512"]
        short = ["logger=none", "trainer.steps=4", "optim.warmup_steps=0", "trainer.eval_every=2"]
        more = fields.pop("more", [])
        tiny = [*small, *short, "data.block_size=32", "data.max_eval_tokens=1024", *more]
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({"overrides": tiny, "space": {"optim.lr": LR}, **fields}, sort_keys=False))
        return str(path)

    return declare


@pytest.fixture
def search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """A function that runs ``python -m sweeps ARGUMENTS`` in this process; returns exit code, stdout and stderr."""

    def search(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments, f"output_dir={tmp_path}/outputs"])
        return (code, *capsys.readouterr())

    return search


def trials(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "outputs" / "sweeps" / "tiny" / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"space": {"optim.lrr": LR}}, "optim.lrr: unknown key, did you mean optim.lr?"),
        ({"space": {"optim.lr": {**LR, "low": -1.0}}}, "space.optim.lr: valid with log: low > 0"),
        ({"space": {"optim.lr": {**LR, "low": 1.0}}}, "space.optim.lr: valid for float: low and high, in this order"),
        ({"space": {"optim.beta1": {"type": "float", "low": 0.5, "high": 1.0}}}, "optim.beta1=1.0: out of range"),
        ({"space": {"model": {"type": "categorical", "choices": ["gpt2", "gpt3"]}}}, "model=gpt3: no such option"),
        ({"space": {"seed": {"type": "int", "low": 0, "high": 1.5}}}, "space.seed: valid for int: low and high that"),
        ({"sampler": {"name": "grid"}}, "space.optim.lr: float; valid for sampler.name=grid: int or categorical"),
        ({"sampler": {"name": "tpee"}}, "sampler.name=tpee"),
        ({"pruner": {"name": "median", "steps": 3}}, "pruner.steps: unknown key"),
        ({"direction": "down"}, "direction=down"),
        ({"space": {}}, "space={}"),
    ],
)
def test_invalid_declarations_are_refused_before_the_first_trial(
    declare: Callable[..., str], search: Callable[..., tuple[int, str, str]], tmp_path: Path, fields: Any, line: str
) -> None:
    file = declare(**fields)
    code, out, err = search(file)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {file}: {line}"), err
    assert err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_a_missing_file(search: Callable[..., tuple[int, str, str]]) -> None:
    assert search("nowhere.yaml")[2].startswith("error: nowhere.yaml: no such file")


@pytest.mark.parametrize("content", ["", "- a", "text"])
def test_a_file_that_declares_nothing(
    search: Callable[..., tuple[int, str, str]], tmp_path: Path, content: str
) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(content)
    assert search(str(file))[2].startswith(f"error: {file}: expected keys and values, KEY: VALUE")


def test_a_wandb_sweep_is_for_wandb(search: Callable[..., tuple[int, str, str]]) -> None:
    file = ROOT / "sweeps" / "wandb_learning_rate.yaml"
    assert search(str(file)) == (2, "", f"error: {file}: a W&B sweep; start it with: wandb sweep {file}\n")


def test_a_folder_that_cannot_be_written(
    declare: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").touch()
    assert main([declare(), f"output_dir={tmp_path}/taken"]) == 2
    assert capsys.readouterr().err.startswith(f"error: output_dir={tmp_path}/taken: ")


def test_the_shipped_declaration_composes() -> None:
    for file in sorted((ROOT / "sweeps").glob("optuna_*.yaml")):
        load(file).configs([])


def drawn(study: Any, sweep: Sweep, count: int) -> list[dict[str, Any]]:
    for number in range(len(study.trials), count):
        study.sampler = sampler(sweep, number)
        trial = study.ask()
        values = {key: dimension.suggest(trial, key) for key, dimension in sweep.space.items()}
        study.tell(trial, abs(float(values["optim.lr"]) - 1e-3))
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_a_resumed_search_draws_the_same_values(tmp_path: Path, name: str) -> None:
    values = {"space": {"optim.lr": LR}, "sampler": {"name": name, "startup_trials": 3}}
    sweep = Sweep.model_validate(values)
    whole = drawn(open_study(tmp_path / "whole", "it", sweep, (), {}), sweep, 6)
    drawn(open_study(tmp_path / "parts", "it", sweep, (), {}), sweep, 2)
    again = drawn(open_study(tmp_path / "parts", "it", sweep, (), {}), sweep, 6)
    assert again == whole
    assert len({params["optim.lr"] for params in whole}) == 6


def test_a_grid_is_every_point_once(tmp_path: Path) -> None:
    space = {
        "optim.lr": {"type": "categorical", "choices": [1e-3, 1e-2]},
        "seed": {"type": "int", "low": 0, "high": 2},
    }
    sweep = Sweep.model_validate({"space": space, "sampler": {"name": "grid"}})
    found = drawn(open_study(tmp_path, "it", sweep, (), {}), sweep, 6)
    assert found == [{"optim.lr": lr, "seed": seed} for lr in (1e-3, 1e-2) for seed in (0, 1, 2)]


def test_a_changed_declaration_is_refused(tmp_path: Path) -> None:
    sweep = Sweep.model_validate({"space": {"optim.lr": LR}})
    drawn(open_study(tmp_path, "it", sweep, ("seed=1",), {}), sweep, 2)
    for changed, common in [
        (sweep.model_copy(update={"metric": "best/test/loss"}), ("seed=1",)),
        (Sweep.model_validate({"space": {"optim.lr": {**LR, "high": 0.1}}}), ("seed=1",)),
        (sweep, ("seed=2",)),
    ]:
        with pytest.raises(UserError, match=rf"^(metric|space|overrides): {tmp_path} has 2 trials of another \1; "):
            open_study(tmp_path, "it", changed, common, {})
    (tmp_path / "study.db").write_text("no database" * 100)
    with pytest.raises(UserError, match=r"study\.db: damaged, locked or of another program: "):
        open_study(tmp_path, "it", sweep, ("seed=1",), {})


@pytest.mark.parametrize(("old", "new"), [("val/loss", "best/val/loss"), ("test/loss", "best/test/loss")])
def test_an_old_metric_name_is_refused_with_the_new_one(declare: Callable[..., str], old: str, new: str) -> None:
    with pytest.raises(UserError, match=f"metric={old}: called {new} in summary.json; write metric: {new}$"):
        load(Path(declare(metric=old)))


def test_a_study_with_the_old_metric_name_is_resumed(tmp_path: Path) -> None:
    sweep = Sweep.model_validate({"space": {"optim.lr": LR}})
    study = open_study(tmp_path, "it", sweep, (), {})
    drawn(study, sweep, 2)
    study.set_user_attr("declared", {**study.user_attrs["declared"], "metric": "val/loss"})
    assert len(open_study(tmp_path, "it", sweep, (), {}).trials) == 2


@pytest.mark.slow
def test_equal_trials_share_a_run_and_a_failed_one_does_not_affect_others(
    declare: Callable[..., str], search: Callable[..., tuple[int, str, str]], tmp_path: Path, small_text: Path
) -> None:
    space = {
        "data.train": {"type": "categorical", "choices": [str(small_text), str(tmp_path / "nowhere.txt")]},
        "data.workers": {"type": "categorical", "choices": [1, 2]},  # decides no number: the same run
    }
    file = declare(space=space, sampler={"name": "grid"})
    code, out, err = search(file, "trials=20", "jobs=2")
    assert code == 2
    assert "error: 2 of 4 trials failed: trial 2 (" in err
    assert "nowhere.txt: matches no file" in err
    assert ".log)" in err
    rows = trials(tmp_path)
    assert [row["state"] for row in rows] == ["finished", "finished", "failed", "failed"]
    assert rows[1]["note"] == "the same run as trial 0"
    assert rows[0]["best/val/loss"] == rows[1]["best/val/loss"]
    (folder,) = (tmp_path / "outputs" / "main").glob("*/summary.json")
    assert float(rows[0]["best/val/loss"]) == read_summary(folder.parent)["best/val/loss"]
    assert load_status(folder.parent).attempt == 1
    (best,) = [line for line in out.splitlines() if line.startswith("the best one: python train.py ")]
    assert best.endswith(f"data.train={small_text} data.workers=1")
    before = (tmp_path / "outputs" / "sweeps" / "tiny" / "trials.csv").read_bytes()
    status = load_status(folder.parent)
    assert search(file, "trials=20", "jobs=2")[0] == 2
    assert load_status(folder.parent) == status, "nothing is run again"
    assert (tmp_path / "outputs" / "sweeps" / "tiny" / "trials.csv").read_bytes() == before


@pytest.mark.slow
def test_a_changed_text_is_refused(
    declare: Callable[..., str], search: Callable[..., tuple[int, str, str]], tmp_path: Path, small_text: Path
) -> None:
    text, study = tmp_path / "own.txt", tmp_path / "outputs" / "sweeps" / "tiny"
    text.write_bytes(small_text.read_bytes())
    file = declare(more=[f"data.train={text}"])
    assert search(file, "trials=1")[0] == 0
    text.write_bytes(small_text.read_bytes()[:-9])
    changed = f"error: data.train: {text} has changed since "
    assert search(file, "trials=2")[2].startswith(f"{changed}the trials in {study}: ")
    shutil.rmtree(study)
    assert search(file, "trials=1")[2].startswith(f"{changed}{tmp_path}/outputs/main/"), "the run is still there"
    text.write_bytes(small_text.read_bytes())
    code, out, _ = search(file, "trials=1")
    assert (code, "trial 0: best/val/loss" in out) == (0, True)


@pytest.mark.slow
def test_a_bad_trial_is_pruned_and_one_that_diverges_counts_as_pruned(
    declare: Callable[..., str], search: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file = declare(
        space={"optim.lr": {"type": "categorical", "choices": [3e-3, 1e-9, 1e30]}},
        sampler={"name": "grid"},
        pruner={"name": "median", "startup_trials": 1},
        more=["trainer.steps=60", "trainer.checkpoint_every=2"],
    )
    code, out, err = search(file, "jobs=1")
    assert (code, err) == (0, "")
    rows = trials(tmp_path)
    assert [row["state"] for row in rows] == ["finished", "stopped early", "stopped early"]
    folder = tmp_path / "outputs" / "main" / rows[1]["run_id"]
    assert load_status(folder).status == "interrupted"
    assert 0 < load_status(folder).step < 60
    assert rows[1]["last_step"] == "2", "where the pruner decided"
    assert rows[2]["note"].startswith("TrainingDiverged: ")
    assert "best of 1 finished, 2 stopped early" in out


def test_a_pruned_trial_is_not_resumed(
    declare: Callable[..., str], search: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """Killed between the decision and the end of the run."""
    file = declare()
    sweep = load(Path(file))
    common = (*sweep.overrides, f"output_dir={tmp_path}/outputs")
    study = open_study(tmp_path / "outputs" / "sweeps" / "tiny", "tiny", sweep, common, {})
    trial = study.ask()
    trial.report(5.0, 2)
    trial.set_user_attr("pruned_at", 2)
    code, out, err = search(file, "trials=1")
    assert (code, err) == (0, "")
    assert "trial 0: stopped early" in out
    assert [(row["state"], row["last_step"]) for row in trials(tmp_path)] == [("stopped early", "2")]
    assert not (tmp_path / "outputs" / "main").exists()


@pytest.mark.parametrize("content", [b"SQLite format 3\0" + bytes(5000), b"no database", b"declared"])
def test_a_study_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.db").write_bytes(content)
    sweep = Sweep.model_validate({"space": {"optim.lr": LR}})
    with pytest.raises(UserError, match=r"study\.db: damaged, locked or of another program: \w+: "):
        open_study(tmp_path, "it", sweep, (), {})
