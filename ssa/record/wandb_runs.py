"""Reader of the runs in a W&B project, ``source=wandb:ENTITY/PROJECT``, as `ssa.record.wandb_mirror` wrote them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ssa.config import upgraded
from ssa.errors import UserError, first_line
from ssa.record.run_files import State, checked_summary, upgraded_summary
from ssa.record.run_table import SECTIONS, FoundRun
from ssa.record.wandb_names import OF_ROWS

_SOURCE = re.compile(r"wandb:([^/\s:]+)/([^/\s:]+)")
_TIMEOUT_SECONDS = 15  # of a request; WANDB_HTTP_TIMEOUT overrides it
_PAGE = 100  # runs per request
_OF_THE_COMMAND = {"resume": None, "rerun": False}  # as in config.yaml
_STATES: dict[str, State] = {"running": "running", "pending": "running", "failed": "failed"}  # others: interrupted


def read(source: str) -> list[FoundRun]:
    """The runs of a project, each once, without W&B runs of other programs.

    A resumed run has several W&B runs: the newest finished one counts, otherwise the newest.

    Raises:
        UserError: the source is misspelled, the project does not exist, there is no API key, or W&B does not answer.
    """
    project = project_of(source)
    try:
        attempts = _attempts(project)
    except Exception as error:  # of W&B, of sockets, or of its service
        raise UserError(f"source={source}: {first_line(error)}") from None
    found = []
    for run_id, runs in attempts.items():
        try:
            found.append(_found(run_id, runs))
        except UserError as error:
            print(f"note: {error}; left out", flush=True)
    return found


def project_of(source: str) -> str:
    """``ENTITY/PROJECT`` of a source.

    Raises:
        UserError: the source is misspelled.
    """
    match = _SOURCE.fullmatch(source)
    if not match:
        raise UserError(f"source={source}: not a W&B project; valid: wandb:ENTITY/PROJECT")
    return "/".join(match.groups())


def check_access() -> str:
    """The address of W&B's server.

    Raises:
        UserError: there is no API key, or W&B is set to another mode than online.
    """
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if settings.mode not in (None, "online", "run"):
        raise UserError(f"W&B is set to {settings.mode}, as by WANDB_MODE={settings.mode}; WANDB_MODE=online reads it")
    if not wandb.login(prompt=False, verify=False):
        raise UserError("no API key is set; `wandb login` or WANDB_API_KEY sets one")
    return str(settings.base_url)


def _attempts(project: str) -> dict[str, list[Any]]:
    """The W&B runs of each run, in the order of creation."""
    import wandb

    server = check_access()
    timeout = wandb.env.get_http_timeout(_TIMEOUT_SECONDS)
    attempts = defaultdict(list)
    try:
        for run in wandb.Api(timeout=timeout).runs(project, per_page=_PAGE, lazy=False):
            with suppress(OSError):
                for folder in (Path(run.dir), *Path(run.dir).parents[:2]):  # W&B creates them, empty
                    folder.rmdir()
            if set(run.config) >= SECTIONS:
                attempts[run.name].append(run)
    except Exception as error:
        _stop_service()
        if "did not respond in time" in str(error):  # from W&B's own process, which waits for the server
            raise UserError(f"no answer from {server} within {timeout} s") from None
        raise
    return attempts


def _stop_service() -> None:
    """Stop W&B's process unless a W&B run uses it: it may retry for minutes, and the exit would wait for it."""
    import wandb

    if wandb.run is None:
        for child in psutil.Process().children():
            with suppress(psutil.Error):
                if child.name().startswith("wandb-core"):
                    child.terminate()
        with suppress(Exception, SystemExit):
            wandb.teardown()


def _found(run_id: str, attempts: Sequence[Any]) -> FoundRun:
    summaries = [_values(run.summary_metrics) for run in attempts]
    finished = [number for number, summary in enumerate(summaries) if summary.get("status") == "finished"]
    chosen = finished[-1] if finished else len(attempts) - 1
    run, summary = attempts[chosen], summaries[chosen]
    recorded: State | None = summary.get("status")
    # an evaluation may have a W&B run of its own, after that of the training
    evaluations = {
        name: value for later in summaries[chosen:] for name, value in later.items() if name.startswith("eval/")
    }
    # without the parameters of a W&B sweep, which are beside the sections as typed, such as ``optim.lr``
    sections = {key: value for key, value in run.config.items() if "." not in key and "/" not in key}
    return FoundRun(
        run_id=run_id,
        folder=run.url,
        status=recorded or _STATES.get(run.state, "interrupted"),
        config={**upgraded(sections), **_OF_THE_COMMAND},
        summary=checked_summary(_results(summary), run.url) if finished else {},
        evaluations=evaluations,
        experiment=run.config["experiment"],
        error=summary.get("error") or "",
        commit=summary.get("commit") or "",
        data_hash=summary.get("data_hash") or "",
    )


def _values(summary: Mapping[str, Any]) -> dict[str, Any]:
    """W&B returns the names of NaN and infinities."""
    odd = ("NaN", "Infinity", "-Infinity")
    return {name: float(value) if value in odd else value for name, value in summary.items()}


def _results(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The values of summary.json, without those that W&B adds and the last values of the rows."""
    others = ("_", "eval/", *OF_ROWS)
    values = upgraded_summary(summary).items()
    return {name: value for name, value in values if name != "step" and not name.startswith(others)}
