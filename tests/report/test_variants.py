"""Runs that differ in their seed alone, as one row."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pandas as pd
import pytest
import run_folders

from ssa.command_line.compose import configured
from ssa.record.runs import load
from ssa.report import variants
from ssa.report.tables import Table
from ssa.report.variants import LOSS
from ssa.statistics import mean_interval, paired_interval

pytest.importorskip("scipy")


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    """Vanilla with seeds 0 to 2, SSA with 0, 1 and 3, on queries with 0 and 1 at another learning rate, one alone."""
    ssa = "model/temperature=ssa"
    asked = [(["model/temperature=none"], (0, 1, 2)), ([ssa], (0, 1, 3))]
    asked += [([ssa, "model.temperature.value=null", "optim.lr=0.01"], (0, 1)), ([ssa, "trainer.steps=50"], (0,))]
    for number, (overrides, seeds) in enumerate(asked):
        for seed in seeds:
            config = configured(
                "scale=smoke", "model=gpt2", f"output_dir={tmp_path}/{number}", f"seed={seed}", *overrides
            )
            folder = tmp_path / str(number) / "main" / config.run_id
            run_folders.write(folder, config, random.Random(10 * number + seed))
    return load(tmp_path)


def of(frame: pd.DataFrame, rule: str, lr: float, *seeds: int) -> list[float]:
    chosen = frame[(frame["config.model.temperature.name"] == rule) & (frame["config.optim.lr"] == lr)]
    by_seed = chosen[chosen["config.trainer.steps"] == 20].set_index("config.seed")[LOSS]
    return [by_seed[seed] for seed in seeds]


def rows(table: Table | None) -> dict[str, list[str]]:
    assert table is not None
    return {row[0].text: [cell.shown for cell in row[1:]] for row in table.rows}


def test_seeds_are_one_row_with_the_paired_difference_to_vanilla(frame: pd.DataFrame) -> None:
    lr = frame["config.optim.lr"].min()
    found = variants.table(frame)
    shown = rows(found)
    vanilla, ssa = (of(frame, "none", lr, 0, 1, 2), of(frame, "ssa", lr, 0, 1, 3))
    assert [values[0] for values in shown.values()] == ["3", "3", "2"]
    names = list(shown)
    assert names == [
        "vanilla, optim.lr=0.002",
        "SSA, optim.lr=0.002",
        "SSA, query, optim.lr=0.01",
    ]
    mean, difference = mean_interval(ssa), paired_interval(ssa[:2], vanilla[:2])
    assert shown[names[1]][1] == f"{mean.mean:.4f} [{mean.low:.4f}, {mean.high:.4f}]"
    assert shown[names[1]][2] == f"{difference.mean:.4f} [{difference.low:.4f}, {difference.high:.4f}]"
    assert shown[names[0]][2] == "baseline"
    assert shown[names[2]][2] == "–", "no vanilla at this learning rate"
    assert found is not None
    assert found.rows[1][3].note == "At the 2 seeds that both have."


def test_damaged_and_unfinished_runs_are_left_out(frame: pd.DataFrame) -> None:
    places = [frame.columns.get_loc("status"), frame.columns.get_loc("damage")]
    vanilla = [place for place, name in enumerate(frame["config.model.temperature.name"]) if name == "none"]
    frame.iloc[vanilla[0], places[0]], frame.iloc[vanilla[1], places[1]] = "failed", "metrics.jsonl changed"
    assert [values[0] for values in rows(variants.table(frame)).values()] == ["3", "2"]


def test_without_several_seeds_there_is_no_table(frame: pd.DataFrame) -> None:
    assert variants.table(frame[frame["config.seed"] == 0]) is None
    assert variants.table(frame.iloc[:0]) is None


def test_without_scipy_there_are_means_alone(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "has_intervals", lambda: False)
    found = variants.table(frame)
    assert found is not None
    assert "pip install -e '.[experiments]'" in found.caption
    assert re.fullmatch(r"\d\.\d{4}", found.rows[0][2].text)
