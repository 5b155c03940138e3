"""Records of a grid: a fresh clone renders the same table, other machines go on, one run is recomputed."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import run_folders
from grid_experiments import GRID, TINY, make_experiment, use
from rich.console import Console

from experiments.__main__ import main
from experiments.engine import recompute
from experiments.engine.design import Rates
from experiments.engine.experiment import Experiment
from experiments.engine.grid import Grid, GridSettings, declared
from experiments.engine.grid_records import GridRecords
from experiments.engine.grid_runs import chosen, losses, runs
from ssa.errors import UserError
from ssa.evaluation.evaluate import evaluate
from ssa.evaluation.settings import EvaluateSettings
from ssa.record import records
from ssa.record.checksums import add_evaluations
from ssa.record.records import Record
from ssa.record.runs import load

TUNED = {"name": "GPT-2", "overrides": ["model=gpt2"], "at": {"smoke": []}, "start": "small"}
SEARCH = {"lr": [1e-3, 3e-3], "multiplier": [10]}
ROWS = GRID["rows"][::2]
FILE = Path("grids/tiny/results/smoke_records.parquet")
Prepared = Callable[..., dict[tuple[str, int], Path]]
OTHER = {"cpu": "another CPU", "cpu_capability": "AVX512"}


def begin(*arguments: str) -> int:
    """The command, whose results go to ``again``, as records of the repository stay as they are."""
    return main(["tiny", "scale=smoke", "to=again", *arguments])


def trained() -> list[str]:
    """Ids of the runs that were trained here."""
    return sorted(path.parent.name for path in Path("outputs").rglob("status.json"))


def files(folder: str, suffix: str = "") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob(f"*{suffix}"))}


def rows(name: str) -> list[dict[str, str]]:
    with Path(f"again/smoke_{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def changed(record: Record, **values: Any) -> Record:
    """The record with other values of its summary."""
    return replace(record, run=replace(record.run, summary={**record.run.summary, **values}))


def made_by(record: Record, cpu: str, cpu_capability: str) -> Record:
    """The record as if of another machine."""
    other = {"machine": {**record.environment["machine"], "cpu": cpu}, "cpu_capability": cpu_capability}
    summary = {"cpu": cpu, "cpu_capability": cpu_capability} if record.run.summary else {}
    return replace(changed(record, **summary), environment={**record.environment, **other})


def declaration(**changes: Any) -> tuple[Grid, GridSettings]:
    """The grid, and its settings with changes."""
    experiment = Experiment("tiny")
    settings = GridSettings.model_validate({**experiment.values("smoke"), "scale": "smoke"} | changes)
    return declared(experiment), settings


# With real runs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, small_text: Path) -> Path:
    """A folder with a grid that fine-tunes, its runs, and its results with records."""
    folder = tmp_path_factory.mktemp("made")
    tiny = [*TINY, "data=text", f"data.train={small_text}", "data.tokenizer=bpe-512"]
    tuning = {
        "pretrained": [{"name": "small", "overrides": ["model=gpt2"], "at": {"smoke": tiny}}],
        "overrides": {"smoke": ["trainer.steps=2", "trainer.micro_batch_size=8", "data.max_documents=10"]},
        "search": {"smoke": SEARCH},
    }
    make_experiment(folder / "grids", small_text, groups=[TUNED], rows=ROWS, fine_tuning=tuning)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSA_CACHE_DIR", str(folder / "cache"))
        use(folder / "grids", patch)
        patch.chdir(folder)
        assert main(["tiny", "scale=smoke"]) == 0
    return folder


@pytest.fixture
def clone(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Record]:
    """The records in a copy of what a repository has, without runs, which is the working folder."""
    shutil.copytree(made / "grids", tmp_path / "grids")
    use(tmp_path / "grids", monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSA_CACHE_DIR", str(made / "cache"))
    return records.read(FILE)


def of(made: list[Record], row: str, seed: int) -> Record:
    """The record of a run of the table."""
    with Path("grids/tiny/results/smoke_runs.csv").open(newline="") as file:
        cells = {(line["row"], line["seed"]): line["run"] for line in csv.DictReader(file)}
    return next(record for record in made if record.run.run_id == cells[row, str(seed)])


def start(made: list[Record]) -> Record:
    """The record of the pretrained model."""
    return next(record for record in made if not record.run.config["init_from"])


@pytest.mark.slow
def test_fresh_clone_renders_the_same_bytes_without_training(
    clone: list[Record], capsys: pytest.CaptureFixture[str]
) -> None:
    results = FILE.parent.as_posix()
    committed = files(results)
    for path in Path(results).iterdir():
        if path.name != FILE.name:
            path.unlink()
    assert main(["tiny", "scale=smoke"]) == 0
    assert "9 of 9 runs have a record, which counts as finished" in capsys.readouterr().out
    assert trained() == []
    again = files(results)
    assert {name for name in committed if name.endswith(".csv")} == {
        f"smoke_{name}.csv" for name in ("runs", "search", "statistics", "summary", "conclusions")
    }
    for name in committed.keys() - {"smoke_provenance.json"}:
        assert again[name] == committed[name], name
    provenance = json.loads(again["smoke_provenance.json"])
    assert provenance["machines_of_runs"] == json.loads(committed["smoke_provenance.json"])["machines_of_runs"]
    assert begin("plan=true") == 0
    assert "0 of 9 runs to do, 0 tokens" in capsys.readouterr().out


@pytest.mark.slow
def test_records_of_this_machine_are_gone_on_with(clone: list[Record], capsys: pytest.CaptureFixture[str]) -> None:
    lost = of(clone, "SSA", 1)
    records.write(FILE, [record for record in clone if record is not lost])
    assert begin("render=true") == 0
    assert [row["loss"] == "-" for row in rows("runs")] == [False, False, False, True]
    assert trained() == []
    assert begin("plan=true") == 0
    assert "2 of 9 runs to do" in " ".join(capsys.readouterr().out.split())
    assert begin() == 0
    assert trained() == sorted([start(clone).run.run_id, lost.run.run_id]), "with the model that it fine-tunes"
    assert files("again", ".csv") == files("grids/tiny/results", ".csv")


@pytest.mark.slow
def test_runs_of_one_seed_come_from_one_machine(clone: list[Record], capsys: pytest.CaptureFixture[str]) -> None:
    """Records of another machine count where they are complete; else the whole seed is trained here."""
    elsewhere = [made_by(record, **OTHER) for record in clone]
    lost, base = of(elsewhere, "SSA", 0), of(elsewhere, "vanilla", 0)
    records.write(FILE, [record for record in elsewhere if record is not lost])
    assert begin() == 0
    assert trained() == sorted(record.run.run_id for record in (start(clone), base, lost))
    kept = [(record.run.run_id, record.run.summary["cpu"]) for record in records.read(Path("again") / FILE.name)]
    ids = {record.run.run_id for record in (start(clone), base, lost)}
    assert {name for name, cpu in kept if cpu != OTHER["cpu"]} == ids
    assert (start(clone).run.run_id, OTHER["cpu"]) in kept, "the start of the other machine's seed"
    assert {row["difference n"] for row in rows("statistics") if (row["row"], row["metric"]) == ("SSA", "loss")} == {
        "2"
    }


@pytest.mark.slow
def test_recomputed_run_is_equal_to_its_record(clone: list[Record], capsys: pytest.CaptureFixture[str]) -> None:
    """A fine-tuned one, whose start is not here, so that it is recomputed first."""
    record = of(clone, "SSA", 0)
    assert begin(f"recompute={record.run.run_id}") == 0
    printed = capsys.readouterr().out
    compared = len(recompute.values_of(record))
    assert compared > 50
    assert f"{compared} of {compared} values equal bit for bit (" in printed
    assert trained() == sorted([start(clone).run.run_id, record.run.run_id])
    assert not Path("again").exists()


@pytest.mark.slow
def test_evaluations_are_recomputed(clone: list[Record], capsys: pytest.CaptureFixture[str]) -> None:
    record = start(clone)
    again = f"recompute={record.run.run_id}"
    assert begin(again) == 0
    (folder,) = (path.parent for path in Path("outputs/recomputed").rglob("summary.json"))
    evaluate(EvaluateSettings(run=str(folder), tasks=["perplexity"]))
    records.write(FILE, [records.record_of(folder, record.overrides, ("tasks=perplexity",), ("perplexity",))])
    (evaluated,) = records.read(FILE)
    assert evaluated.run.evaluations["eval/perplexity/loss"] > 1
    capsys.readouterr()
    assert begin(again) == 0
    compared = len(recompute.values_of(evaluated))
    assert compared == len(recompute.values_of(record)) + len(evaluated.run.evaluations)
    assert f"{compared} of {compared} values equal bit for bit (" in capsys.readouterr().out


@pytest.mark.slow
def test_recompute_of_an_unknown_run_is_one_line(clone: list[Record], capsys: pytest.CaptureFixture[str]) -> None:
    name = start(clone).run.run_id
    assert begin(f"recompute={name}x") == 2
    error = capsys.readouterr().err
    assert error == f"error: recompute={name}x: no such record in {Path.cwd() / FILE}, did you mean {name}?\n"


# With invented numbers


def test_values_that_differ_are_printed(capsys: pytest.CaptureFixture[str], folders: Prepared) -> None:
    record = records.record_of(folders()["SSA", 0], ())
    console, loss = Console(width=200), record.run.summary["best/val/loss"]
    recompute.compare(record, record, console)
    with pytest.raises(UserError, match=r"1 values differ from its record, on the same kind of machine$"):
        recompute.compare(record, changed(record, **{"best/val/loss": loss + 1e-9}), console)
    assert f"best/val/loss: {loss} recorded, {loss + 1e-9} now (+1e-09)" in capsys.readouterr().out
    elsewhere = made_by(record, **OTHER)
    recompute.compare(record, changed(elsewhere, **{"best/val/loss": loss + 1e-3}), console)
    assert "another CPU, AVX512, cpu, 32-true, 1 thread" in capsys.readouterr().out
    far = {"best/test/loss": record.run.summary["best/test/loss"] - 0.1}
    with pytest.raises(UserError, match=r"differs from its record by more than 0.02 nats: best/test/loss"):
        recompute.compare(record, changed(elsewhere, **far), console)
    recompute.compare(record, changed(record, **{"best/val/a_new_metric": 1.0}), console)  # of a newer version
    with pytest.raises(UserError, match=r"\d\d values differ"):
        recompute.compare(record, replace(record, curve=[]), console)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    """A function that writes the run folders of a grid; ``summaries`` has values of some, by row and seed."""
    make_experiment(tmp_path / "grids", Path("text.txt"))
    (tmp_path / "text.txt").write_text("text")
    use(tmp_path / "grids", monkeypatch)
    monkeypatch.chdir(tmp_path)

    def prepare(summaries: Mapping[tuple[str, int], dict[str, Any]] | None = None) -> dict[tuple[str, int], Path]:
        made = {}
        for number, (cell, run) in enumerate(runs(*declaration()).items()):
            assert run
            summary = (summaries or {}).get((cell.row, cell.seed), {})
            run_folders.write(run.folder, run.config, random.Random(number), **summary)
            made[cell.row, cell.seed] = run.folder
        return made

    return prepare


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "truncated": (lambda content: content[: len(content) // 2], "damaged, or not a file of records ("),
    "empty": (lambda content: b"", "damaged, or not a file of records ("),
    "flipped bit": (lambda content: flipped(content, 4 * len(content)), "damaged, or not a file of records ("),
    "LFS pointer": (lambda content: b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the file"),
}


def flipped(content: bytes, bit: int) -> bytes:
    return content[: bit // 8] + bytes([content[bit // 8] ^ (1 << bit % 8)]) + content[bit // 8 + 1 :]


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_file_is_one_line(
    damage: Callable[[bytes], bytes], reason: str, folders: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    folders()
    assert main(["tiny", "scale=smoke"]) == 0
    FILE.write_bytes(damage(FILE.read_bytes()))
    before = files(FILE.parent.as_posix())
    shutil.rmtree("outputs")
    capsys.readouterr()
    assert begin() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(f"error: {Path.cwd() / FILE}: {reason}")
    assert (trained(), files(FILE.parent.as_posix())) == ([], before)


def test_damage_to_the_records_of_another_experiment_is_named(
    folders: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    make_experiment(Path("others"), Path("text.txt"), name="other")
    shutil.move("others/other", "grids/other")
    Path("grids/other/results").mkdir()
    Path("grids/other/results/smoke_records.parquet").write_text("PAR1")
    folders()
    assert begin() == 2
    assert capsys.readouterr().err.startswith(f"error: {Path.cwd()}/grids/other/results/smoke_records.parquet: damaged")


def test_records_of_another_experiment_count(folders: Prepared) -> None:
    """Equal runs of several experiments are trained once."""
    folders()
    make_experiment(Path("others"), Path("text.txt"), name="other")
    shutil.move("others/other", "grids/other")
    assert main(["other", "scale=smoke"]) == 0
    shutil.rmtree("outputs")
    assert begin() == 0
    assert trained() == []
    assert [row["loss"] == "-" for row in rows("runs")] == 6 * [False]


def test_runs_of_different_machines_are_not_paired(folders: Prepared) -> None:
    made = folders({("SSA", 1): OTHER})
    assert begin() == 0
    vanilla, constant, ssa = json.loads(Path("again/smoke_summary.json").read_text())["rows"]
    loss, difference = ssa[1:3]
    assert (loss["state"], len(loss["runs"])) == ("value", 2), "both count on their own"
    assert difference["runs"] == [*loss["runs"], made["vanilla", 0].name]
    place = "a CPU, AVX2, cpu, 32-true, 1 thread, torch 2.13.0+cpu"
    other = "another CPU, AVX512, cpu, 32-true, 1 thread, torch 2.13.0+cpu"
    first, second = made["SSA", 1], made["vanilla", 1]
    assert difference["note"] == (
        f"At 1 of 2 seeds; seed 1 is not paired: SSA was trained on {other}, vanilla on {place}. To fill it: "
        f"rm -r {first} {second} && python -m experiments tiny scale=smoke to=again"
    )
    assert constant[2]["note"] == vanilla[2]["note"] == ""
    (conclusion,) = rows("conclusions")
    assert conclusion["seeds"] == "1"


@pytest.mark.parametrize("rows_of_the_other", [("vanilla", "constant"), ("SSA",)])
def test_rendering_prefers_the_runs_that_finished_here(folders: Prepared, rows_of_the_other: tuple[str, ...]) -> None:
    """Where another machine has records of some rows only, as after an interruption there."""
    made = folders()
    assert main(["tiny", "scale=smoke"]) == 0
    kept = {made[row, 0].name for row in rows_of_the_other}
    others = [made_by(record, **OTHER) for record in records.read(FILE) if record.run.run_id in kept]
    records.write(FILE, others)
    assert begin("render=true") == 0
    found = records.read(Path("again") / FILE.name)
    assert {record.run.summary["cpu"] for record in found} == {"a CPU"}
    assert len(found) == 6
    assert [row["difference n"] for row in rows("statistics") if (row["row"], row["metric"]) == ("SSA", "loss")] == [
        "2"
    ]


@pytest.mark.parametrize("fact", ["data_hash", "config.init_hash"])
def test_runs_of_different_texts_or_starts_are_not_paired(
    folders: Prepared, fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = folders()["SSA", 1].name

    def changed_load(*arguments: Any, **settings: Any) -> pd.DataFrame:
        frame = load(*arguments, **settings)
        frame[fact] = ["another" if name == other else "one" for name in frame.index]
        return frame

    monkeypatch.setattr("ssa.record.runs.load", changed_load)
    assert begin() == 0
    summary = json.loads(Path("again/smoke_summary.json").read_text())
    said = ("with text another", "with text one") if fact == "data_hash" else ("from another", "from one")
    assert f"seed 1 is not paired: SSA was trained {said[0]}, vanilla {said[1]}." in summary["rows"][2][2]["note"]
    assert ("the seeds have 2 starts" in summary["caption"]) == (fact == "config.init_hash")


@pytest.mark.slow
def test_record_made_with_other_options_does_not_count(clone: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    """The overrides of a fine-tuned run may be equal while a file of ``conf/`` has changed."""
    assert begin("recompute=" + start(clone).run.run_id) == 0
    shutil.move("outputs/recomputed/main", "outputs/experiments/main")
    grid, settings = declaration()
    before = GridRecords.of(Experiment("tiny"), grid, settings)
    assert len(before.plan()[1]) == 9
    optim = {**of(clone, "SSA", 0).run.config["optim"], "weight_decay": 7.0}
    other = [
        replace(one, run=replace(one.run, config={**one.run.config, "optim": optim}))
        if "ssa" in one.run.run_id
        else one
        for one in clone
    ]
    records.write(FILE, other)
    taken = GridRecords.of(Experiment("tiny"), grid, settings).plan()[1]
    assert {cell.row for cell in taken if cell.group == "GPT-2" and cell.is_reported} <= {"vanilla"}


@pytest.mark.slow
def test_rendering_cannot_start_over(clone: list[Record], capsys: pytest.CaptureFixture[str]) -> None:
    before = FILE.read_bytes()
    assert main(["tiny", "scale=smoke", "render=true", "rerun=true"]) == 2
    assert capsys.readouterr().err.startswith("error: render=true, rerun=true: valid: one of them")
    assert FILE.read_bytes() == before


def test_nothing_is_decided_before_all_seeds_have_finished(folders: Prepared) -> None:
    made = folders()
    shutil.rmtree(made["SSA", 1])
    assert begin("render=true") == 0
    (conclusion,) = rows("conclusions")
    assert conclusion["verdict"] == "unfinished, 1 of 2 seeds"
    of_row = {row["row"]: row["p"] for row in rows("statistics") if row["metric"] == "loss"}
    assert (of_row["SSA"], of_row["constant"] != "-") == ("-", True)


def test_only_divergence_is_a_result_of_a_search(folders: Prepared) -> None:
    shutil.rmtree("grids")
    group = {"name": "GPT-2", "overrides": ["model=gpt2"], "search": {"smoke": SEARCH}}
    make_experiment(Path("grids"), Path("text.txt"), groups=[group], rows=ROWS)
    grid, settings = declaration()
    searched = {cell: run for cell, run in runs(grid, settings).items() if run and cell.rates}
    for number, (cell, run) in enumerate(searched.items()):
        run_folders.write(run.folder, run.config, random.Random(number), run_folders.FAILED * (cell.row == "SSA"))
    assert chosen(runs(grid, settings), "GPT-2", "vanilla") is not None
    for run in (run for cell, run in searched.items() if cell.row == "SSA"):
        assert run.error.startswith("TrainingDiverged")
        status = run.folder / "status.json"
        status.write_text(status.read_text().replace("TrainingDiverged", "OSError"))
    assert losses(runs(grid, settings), "GPT-2", "SSA") == {}


def test_runs_of_earlier_versions_are_paired(folders: Prepared) -> None:
    """Their machine is not known."""
    folders({("SSA", 1): {"cpu": None}, ("vanilla", 0): {"torch": None}})
    assert begin() == 0
    assert {row["difference n"] for row in rows("statistics") if (row["row"], row["metric"]) == ("SSA", "loss")} == {
        "2"
    }


def test_other_evaluations_do_not_count(folders: Prepared) -> None:
    made = {folder.name: folder for folder in folders().values()}
    for number, folder in enumerate(made.values()):
        outcome = {"task": "passkey", "metrics": {"accuracy": {"value": number / 8}}, "settings": {"trials": 2}}
        (folder / "evaluation").mkdir(exist_ok=True)
        (folder / "evaluation" / "passkey.json").write_text(json.dumps(outcome))
        add_evaluations(folder, 0)
    asked = ((), ("tasks=passkey", "trials=2"), ("tasks=passkey", "trials=3"), ("tasks=passkey,length",))
    settings = [declaration(evaluate=list(arguments)) for arguments in asked]
    written = GridRecords.of(Experiment("tiny"), *settings[1])
    written.path.parent.mkdir()
    written.write(written.path, runs(*settings[1]), {})
    counted = [len(GridRecords.of(Experiment("tiny"), *one).taken(runs(*one))) for one in settings]
    assert counted == [6, 6, 0, 0]
    assert records.read(FILE)[0].run.evaluations["eval/passkey/accuracy"] in [number / 8 for number in range(6)]


@pytest.mark.slow
def test_search_is_known_from_its_records(
    folders: Prepared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where one of its runs diverged: the runs that use its rates are known, and have records."""
    shutil.rmtree("grids")
    group = {"name": "GPT-2", "overrides": ["model=gpt2"], "search": {"smoke": SEARCH}}
    make_experiment(Path("grids"), Path("text.txt"), groups=[group], rows=ROWS)
    grid, settings = declaration()
    for stage in range(2):
        for number, (cell, run) in enumerate(runs(grid, settings).items()):
            if run and not run.folder.exists():
                failed = stage == 0 and cell.row == "SSA" and cell.rates == Rates(1e-3, 10)
                run_folders.write(run.folder, run.config, random.Random(number), run_folders.FAILED * failed)
    assert main(["tiny", "scale=smoke"]) == 2, "the run that diverged"
    assert len(records.read(FILE)) == 8
    shutil.rmtree("outputs")
    before = files(FILE.parent.as_posix(), ".csv")
    assert main(["tiny", "scale=smoke"]) == 0
    assert trained() == []
    assert files(FILE.parent.as_posix(), ".csv") == before
    assert b"inf" in before["smoke_search.csv"]
