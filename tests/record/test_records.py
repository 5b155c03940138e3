"""Records of runs in one Parquet file: the same object as from the run folder, whole or refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import run_folders

from ssa.config import Config
from ssa.errors import UserError
from ssa.record import records
from ssa.record.checkpoint import save
from ssa.record.machine import Machine
from ssa.record.records import Record
from ssa.record.run_files import read_rows, read_summary
from ssa.record.run_table import table
from ssa.record.runs import read_run

EVALUATED = run_folders.EVALUATED
OVERRIDES = ("model=gpt2", "seed=0")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Finished runs: an evaluated one, then others."""
    found = run_folders.make(tmp_path_factory.mktemp("runs") / "outputs", 20)
    return [folder for folder in found if read_run(folder).status == "finished"]


@pytest.fixture
def written(made: list[Path], tmp_path: Path) -> Path:
    records.write(tmp_path / "records.parquet", [records.record_of(folder, OVERRIDES) for folder in made[:3]])
    return tmp_path / "records.parquet"


def test_record_gives_what_its_run_folder_gives(made: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    records.write(path, [records.record_of(folder, OVERRIDES, ["tasks=perplexity"], ["perplexity"]) for folder in made])
    again = {record.run.run_id: record for record in records.read(path)}
    assert again.keys() == {folder.name for folder in made}
    for folder in made:
        record = again[folder.name]
        assert record.run == replace(read_run(folder), folder=str(path))
        assert (record.overrides, record.evaluate) == (OVERRIDES, ("tasks=perplexity",))
        assert record.environment["packages"] == json.loads((folder / "environment.json").read_text())["packages"]
        losses = [row["val/loss"] for row in read_rows(folder) if "val/loss" in row]
        assert [row["val/loss"] for row in record.curve if "val/loss" in row] == losses
        assert {"step", "tokens", "train/loss", "train/grad_norm"} <= record.curve[0].keys()
        assert not [name for row in record.curve for name in row if "/head_" in name or "per_second" in name]
    frame, of_folders = table(record.run for record in again.values()), table(map(read_run, made))
    pd.testing.assert_frame_equal(frame.drop(columns="folder"), of_folders.drop(columns="folder"))
    assert "eval/perplexity/loss" in frame


def test_nan_and_infinity_are_kept(tmp_path: Path, made: list[Path]) -> None:
    record = records.record_of(made[0], ())
    summary = {**record.run.summary, "best/val/loss": float("nan"), "best/val/perplexity": float("inf")}
    records.write(tmp_path / "one", [replace(record, run=replace(record.run, summary=summary))])
    (again,) = records.read(tmp_path / "one")
    assert pd.isna(again.run.summary["best/val/loss"])
    assert again.run.summary["best/val/perplexity"] == float("inf")


def test_record_says_nothing_of_the_host(written: Path, made: list[Path]) -> None:
    (first, *_) = records.read(written)
    assert "host" not in first.environment
    assert "untracked" not in first.environment["git"]
    assert str(Path.cwd()) not in str(first)


def test_record_says_nothing_of_where_the_runs_were(smoke: Callable[..., Config], tmp_path: Path) -> None:
    config = smoke(f"output_dir={tmp_path}/night/experiments")
    folder = tmp_path / "night" / "experiments" / config.run_id
    run_folders.write(folder, config, random.Random(0))
    record = records.record_of(folder, ())
    assert record.run.config["output_dir"] == "outputs/experiments"
    assert str(tmp_path) not in str(replace(record, run=replace(record.run, folder="")))


def test_hash_of_the_weights_is_of_the_tensors(smoke: Callable[..., Config], tmp_path: Path) -> None:
    from ssa.model.transformer import Transformer

    hashes = []
    for number, seed in enumerate((0, 0, 1)):
        config = smoke(f"output_dir={tmp_path}/{number}")
        folder = tmp_path / str(number) / config.run_id
        run_folders.write(folder, config, random.Random(0))
        weights = Transformer(config.model, 512, seed=seed).state_dict()
        (folder / "checkpoints").mkdir()
        save({"model": weights, "config": config.plain(), "step": 4}, folder / "checkpoints" / "best.ckpt")
        hashes.append(records.record_of(folder, ()).weights)
    assert len(hashes[0]) == 64
    assert hashes[0] == hashes[1] != hashes[2], "whatever else the file holds"


def test_failed_run_has_a_record(tmp_path: Path) -> None:
    """A run that diverged is a result, too."""
    run_folders.write(tmp_path / "failed", next(run_folders.configs()), random.Random(0), run_folders.FAILED)
    path = tmp_path / "records.parquet"
    records.write(path, [records.record_of(tmp_path / "failed", ())])
    (record,) = records.read(path)
    assert record.run == replace(read_run(tmp_path / "failed"), folder=str(path))
    assert record.run.status == "failed"
    assert record.run.error == "TrainingDiverged: the loss is not finite at step 10"
    assert record.machine == Machine("cpu", "32-true", "a CPU", "AVX2", 1, "2.13.0+cpu")


def test_unfinished_and_damaged_runs_have_no_record(made: list[Path], tmp_path: Path) -> None:
    config = next(run_folders.configs())
    run_folders.write(tmp_path / "interrupted", config, random.Random(0), run_folders.INTERRUPTED)
    with pytest.raises(UserError, match="interrupted: no record of it"):
        records.record_of(tmp_path / "interrupted", ())
    run_folders.write(tmp_path / "damaged", config, random.Random(0))
    (tmp_path / "damaged" / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"metrics.jsonl changed: no record of it"):
        records.record_of(tmp_path / "damaged", ())


def test_unchanged_record_is_kept(made: list[Path], tmp_path: Path) -> None:
    known = replace(records.record_of(made[0], OVERRIDES), weights="as it was")
    assert records.record_of(made[0], OVERRIDES, known=known) is known
    other = replace(known, run=replace(known.run, summary={**known.run.summary, "best/val/loss": 1.0}))
    assert records.record_of(made[0], OVERRIDES, known=other).weights == ""


def test_equal_records_give_equal_bytes(written: Path, tmp_path: Path) -> None:
    found = records.read(written)
    records.write(tmp_path / "again", found[::-1])
    assert (tmp_path / "again").read_bytes() == written.read_bytes()
    pq.write_table(pq.read_table(written), tmp_path / "other version")  # other bytes of the same records
    assert (tmp_path / "other version").read_bytes() != written.read_bytes()
    records.write(tmp_path / "again", found, before=tmp_path / "other version")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "other version").read_bytes()
    records.write(tmp_path / "again", found[1:], before=tmp_path / "other version")
    assert [record.run.run_id for record in records.read(tmp_path / "again")] == [one.run.run_id for one in found[1:]]


def test_missing_file_has_no_records(tmp_path: Path) -> None:
    assert records.read(tmp_path / "records.parquet") == []


def edited(name: str, change: Callable[[object], object]) -> Callable[[pa.Table], pa.Table]:
    """A column of the second run, changed as pandas or a database would: with whole pages."""

    def edit(stored: pa.Table) -> pa.Table:
        values = stored.column(name).to_pylist()
        values[1] = change(values[1])
        field = stored.schema.field(name)
        return stored.set_column(stored.schema.get_field_index(name), field, pa.array(values, field.type))

    return edit


def raised(metrics: list[tuple[str, float]]) -> list[tuple[str, float]]:
    return [(name, value + (name == "best/val/loss") * 1e-12) for name, value in metrics]


EDITS: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "a loss": (edited("numbers", raised), "the record of {} is damaged, or was changed"),
    "a config": (
        edited("config", lambda text: str(text).replace('"seed": ', '"seed": 1')),
        "the record of {} is damaged",
    ),
    "a curve": (edited("curve", lambda rows: rows[:-1]), "the record of {} is damaged, or was changed"),
    "an id": (edited("run_id", lambda text: "other"), "the record of other is damaged, or was changed"),
    "a lost run": (lambda stored: stored.slice(1), "records were removed or added"),
    "a run twice": (lambda stored: pa.concat_tables([stored, stored.slice(0, 1)]), "records were removed or added"),
    "a lost column": (lambda stored: stored.drop(["time"]), "damaged, or not a file of records"),
    "no checksum": (lambda stored: stored.replace_schema_metadata({"version": "1"}), "records were removed or added"),
    "another version": (lambda stored: stored.replace_schema_metadata({"version": "2"}), "records of another version"),
    "another table": (lambda stored: pa.table({"a": [1]}), "damaged, or not a file of records"),
}


@pytest.mark.parametrize(("edit", "reason"), EDITS.values(), ids=EDITS)
def test_edited_file_is_refused(edit: Callable[[pa.Table], pa.Table], reason: str, written: Path) -> None:
    second = records.read(written)[1].run.run_id
    pq.write_table(edit(pq.read_table(written)), written)
    with pytest.raises(UserError) as error:
        records.read(written)
    assert str(error.value).startswith(f"{written}: {reason.format(second)}")
    assert f"restore it (git checkout {written})" in str(error.value)
    assert "\n" not in str(error.value)


def test_flipped_bits_never_change_a_value(written: Path) -> None:
    """Most are named; the others are in bytes without effect, such as the name of the program that wrote the file."""
    whole, content, drawn = records.read(written), written.read_bytes(), random.Random(0)
    reasons = []
    for _ in range(200):
        flipped = bytearray(content)
        flipped[drawn.randrange(len(content))] ^= 1 << drawn.randrange(8)
        written.write_bytes(flipped)
        try:
            assert records.read(written) == whole
        except UserError as error:
            reasons.append(str(error))
    assert all(reason.startswith(f"{written}: ") and "\n" not in reason for reason in reasons)
    assert len(reasons) > 150


def test_thousand_runs_take_a_few_megabytes(tmp_path: Path) -> None:
    """With statistics of each head in the summary, and 50 rows of the curve."""
    found: list[Record] = []
    for number, config in zip(range(40), run_folders.configs(), strict=False):
        run_folders.write(tmp_path / config.run_id, config, random.Random(number))
        found.append(records.record_of(tmp_path / config.run_id, OVERRIDES))
    assert len(read_summary(tmp_path / found[0].run.run_id)) > 100
    records.write(tmp_path / "records.parquet", found)
    assert (tmp_path / "records.parquet").stat().st_size < 40 * 3500
