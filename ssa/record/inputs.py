"""The recorded inputs of a run, and the check that they are still the same."""

from __future__ import annotations

from pathlib import Path

from ssa.errors import UserError
from ssa.files import read_json_or_none

Inputs = dict[str, dict[str, str]]  # a hash of the content, by setting and name


def recorded_inputs(folder: str | Path, init_from: str | None) -> Inputs:
    """The inputs in environment.json; those that a run of an earlier version did not record are left out."""
    environment = read_json_or_none(Path(folder) / "environment.json") or {}
    found = environment.get("inputs")
    if not isinstance(found, dict):
        weights = environment.get("weights_hash")
        found = {"init_from": {init_from: weights}} if init_from and weights else {}
    return {setting: files for setting, files in found.items() if isinstance(files, dict)}


def check_inputs(folder: str | Path, init_from: str | None, now: Inputs) -> None:
    """Compare the recorded inputs of a run with those that are available now.

    Raises:
        UserError: names the first that differs.
    """
    refuse_changes(recorded_inputs(folder, init_from), now, f"{folder} began", "start over with rerun=true")


def refuse_changes(before: Inputs, now: Inputs, since: str, start_over: str) -> None:
    """Compare inputs; a setting that only one of them has is skipped, and files may be renamed within a glob.

    Raises:
        UserError: names the first that differs, ``since`` when, and how to ``start_over``.
    """
    for setting in (setting for setting in before if setting in now):
        old, new = before[setting], now[setting]
        for name in dict.fromkeys((*old, *new)) if [*old.values()] != [*new.values()] else ():
            if old.get(name) != new.get(name):
                what = "is new" if name not in old else "is gone" if name not in new else "has changed"
                restore = "restore it, give the new one another name"
                raise UserError(f"{setting}: {name} {what} since {since}: {restore}, or {start_over}")
