"""Origin of a run: runs that are compared were trained on one kind of machine, on one text and from one start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from ssa.record.machine import Machine
from ssa.record.records import Record

_WORDS = {"machine": "on", "start": "from", "data_hash": "with text"}


class Origin(NamedTuple):
    """Where a run was trained, from what, on which text.

    Attributes:
        machine: None where it is not recorded.
        start: hash of the fine-tuned model's content, or its id on the Hub; empty if trained from scratch.
        data_hash: of the tokenized text; empty where it is not recorded.
    """

    machine: Machine | None
    start: str
    data_hash: str

    @classmethod
    def of_record(cls, record: Record) -> Self:
        return cls(record.machine, start_in(record.run.config), record.run.data_hash)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Self:
        """Of a row of `ssa.record.runs.load`."""
        config = {name: row.get(f"config.{name}") for name in ("init_hash", "init_from")}
        return cls(Machine.of(row), start_in(config), str(row["data_hash"]))

    def difference(self, other: Origin) -> tuple[str, str] | None:
        """The first recorded fact in which two origins differ, in words for both; None if there is none."""
        for name, word in _WORDS.items():
            mine, its = getattr(self, name), getattr(other, name)
            if mine and its and mine != its:
                return f"{word} {mine}", f"{word} {its}"
        return None


def start_in(config: Mapping[str, Any]) -> str:
    """What a config fine-tunes: the hash of its content, or its id on the Hub; empty if nothing."""
    found = (config.get(name) for name in ("init_hash", "init_from"))
    return next((str(value) for value in found if value and value == value), "")
