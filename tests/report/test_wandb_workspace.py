"""The saved view of a W&B project, through W&B's own library, to a backend that keeps views."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from wandb_backend import Configured, server

from ssa.errors import UserError
from ssa.record.environment import Environment
from ssa.record.run_record import RunRecord
from ssa.record.wandb_mirror import WandbMirror
from ssa.record.wandb_names import OF_ROWS
from ssa.report.wandb_workspace import SECTIONS, WorkspaceSettings, save

pytestmark = pytest.mark.usefixtures("fresh_wandb")
ASKED = WorkspaceSettings(source="wandb:entity/ssa", name="seeds")


def panels(section: dict[str, Any]) -> list[tuple[str, Any]]:
    found = []
    for panel in section["panels"]:
        config = panel["config"]
        assert panel["viewType"] == "Media Browser" or config["xAxis"] == "tokens"
        found.extend(config.get("metrics") or config["mediaKeys"])
    return found


@pytest.mark.wandb_server
def test_a_view_of_a_project(wandb_config: Configured, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb_workspaces")
    with server(tmp_path / "server"):
        config = wandb_config()
        with RunRecord.open(config) as record:
            record.begin(Environment({}, None))
            with WandbMirror.open(config, record) as mirror:
                mirror.log({"step": 1, "tokens": 1, "train/loss": 2.0})
        capsys.readouterr()
        save(ASKED)
    (kept,) = (tmp_path / "server" / "entity" / "ssa" / ".views").glob("*.json")
    view = json.loads(kept.read_text())
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")
    assert (view["displayName"], view["type"]) == ("seeds", "project-view")
    section = json.loads(view["spec"])["section"]
    (runs,) = section["runSets"]
    assert runs["grouping"] == [{"name": "group", "section": "run"}]
    shown = {one["name"]: panels(one) for one in section["panelBankConfig"]["sections"] if one["panels"]}
    assert list(shown) == list(SECTIONS)
    assert shown["attention"] == [*SECTIONS["attention"], "attention/entropy_map"]
    assert shown["temperature"] == [*SECTIONS["temperature"], "temperature/map"]
    assert all(key.startswith(OF_ROWS) for keys in shown.values() for key in keys)


def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^source=ssa: not a W&B project; valid: wandb:ENTITY/PROJECT$"):
        save(WorkspaceSettings(source="ssa"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(UserError, match=r"^source=wandb:entity/ssa: no API key is set; `wandb login` or WANDB_API_KEY"):
        save(ASKED)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^source=wandb:entity/ssa: a view needs the library wandb-workspaces: pip in"):
        save(ASKED)
