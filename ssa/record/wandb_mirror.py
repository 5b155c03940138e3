"""Weights & Biases mirror of metrics.jsonl, which stays the record of truth.  Nothing here can stop a run.

Each attempt at a run (the first and every resume) is a W&B run of its own, ``<run_id>-<random>``, and starts with all
rows in metrics.jsonl: an offline W&B run cannot be resumed, and logging rows again to an online one would duplicate
them.  The newest W&B run therefore holds the whole record.  wandb.json lists the ids.  In a W&B sweep the agent chooses
id, project and entity.

Rows contain ``step`` and ``tokens``; W&B's own ``step=`` is not used, since it drops rows that are out of order.  Keys
are those of `ssa.record.wandb_names`; those of the summary stay.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from ssa.config import Config, LoggerConfig
from ssa.errors import EXIT_INTERRUPTED, UserError, first_line
from ssa.files import read_json_or_none, write_json
from ssa.record.run_files import read_rows
from ssa.record.run_record import RunRecord, read_status
from ssa.record.wandb_names import at_wandb, of_run
from ssa.record.wandb_pictures import pictures
from ssa.redaction import redacted

Mode = Literal["disabled", "offline", "online"]  # in increasing order


class WandbMirror:
    """The W&B run of one attempt, if there is one: methods can be called in any case, and only `open` raises."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._job_type: Literal["train", "evaluate"] = "train"
        self._run: Any = None

    @classmethod
    def open(cls, config: Config, record: RunRecord) -> Self:
        """Start a W&B run with the rows of the record; W&B's files go to the run folder.

        If the server does not answer within ``logger.timeout_seconds``, the W&B run is offline.

        Raises:
            UserError: ``logger.mode=online`` without a usable API key.
        """
        mirror = cls(config, record.folder)
        if config.logger.name == "wandb":
            with mirror._or_without("did not start"):
                mirror._start(*choose_mode(config.logger))
            rows = record.rows()
            for row in rows:
                mirror.log(row, drawn=row is rows[-1])
        return mirror

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self.finish(_exit_code(error))

    def log(self, row: Mapping[str, Any], drawn: bool = True) -> None:
        """Add a row of metrics.jsonl, with pictures if it is of an evaluation.  A process of W&B sends it."""
        if self._run:
            detail = self._config.logger.detail
            with self._or_without("stopped"):
                self._run.log(at_wandb(row, detail) | (pictures(row) if drawn and detail != "run" else {}))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Set values in W&B's run table; other metrics keep their last values there."""
        if self._run:
            with self._or_without("stopped"):
                self._run.summary.update(dict(values))

    def finish(self, exit_code: int) -> None:
        """End the W&B run, as finished for exit code 0 and as failed otherwise.  Must be called; twice is harmless.

        Data not sent within ``logger.timeout_seconds`` stays in the run folder.
        """
        run, logger = self._run, self._config.logger
        if run:
            with self._or_without("did not finish"):
                try:
                    run.finish(exit_code=exit_code)
                except TimeoutError:
                    sync = _sync_command(run, "--include-online ")
                    _say(f"not everything was sent within {logger.timeout_seconds:g} s; send it later: {sync}")
        self._run = None

    def _start(self, mode: Mode, reason: str) -> None:
        if mode == "online":
            try:
                self._run = self._init("online")
            except Exception as error:  # of W&B, of sockets, or of its service
                mode, reason = "offline", f"no connection: {first_line(error)}"
            else:
                return _say(f"online, {self._run.url}")
        if mode == "disabled":
            return _say(f"off ({reason})")
        self._run = self._init("offline")
        return _say(f"offline ({reason}); send it later: {_sync_command(self._run)}")

    def _init(self, mode: Mode, known: str | None = None) -> Any:
        """A new W&B run, or the known run of this id, resumed."""
        import wandb

        logging.raiseExceptions = False  # on a full disk W&B's own log would print a traceback for each line
        config, logger = self._config, self._config.logger
        run = wandb.init(
            id=known or f"{config.run_id}-{secrets.token_hex(3)}",
            resume="must" if known else None,
            name=config.run_id,
            job_type=self._job_type,
            project=logger.project,
            entity=redacted(logger.entity),
            **of_run(config),
            config=config.recorded(),
            dir=str(self._folder),
            mode=mode if mode != "disabled" else None,
            reinit="create_new",  # each job of a multirun is a W&B run, even if an earlier one failed
            settings=_settings(logger.timeout_seconds),
        )
        run.define_metric("step")
        run.define_metric("tokens")
        run.define_metric("*", step_metric="step")
        if known is None:
            this = {"id": run.id, "mode": run.settings.mode, "url": run.url}
            write_json(self._folder / "wandb.json", {"attempts": [*_attempts(self._folder), this]})
        return run

    @contextmanager
    def _or_without(self, what: str) -> Iterator[None]:
        """An exception of W&B ends the mirror with a line, not the training."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # W&B raises many classes
            self._run = None
            _say(f"{what} ({first_line(error)}); the run continues with metrics.jsonl only")
            _drop_service()


def mirror_evaluation(config: Config, folder: Path, values: Mapping[str, float]) -> None:
    """Add the metrics of an evaluation, by name, to the newest W&B run of a run, or, if that is not online, to a new
    one with all rows.  Never fails the evaluation.
    """
    if config.logger.name != "wandb":
        return
    mirror = WandbMirror(config, folder)
    try:
        mode, reason = choose_mode(config.logger)
        newest = _attempts(folder)[-1:]
        online = mode == "online" and newest and newest[0].get("mode") == "online"
        if online and read_status(folder).status == "finished":  # W&B would regard an unfinished one as stopped
            mirror._run = mirror._init("online", newest[0]["id"])
            _say(f"online, {mirror._run.url}")
        else:
            mirror._job_type = "evaluate"
            mirror._start(mode, reason)
            for row in read_rows(folder):
                mirror.log(row)
    except Exception as error:  # W&B raises many classes; the results are in the folder in any case
        _say(f"could not record the evaluation ({first_line(error)})")
        _drop_service()
    mirror.summary(values)
    mirror.finish(0)


def mirror_finished(config: Config, record: RunRecord, summary: Mapping[str, Any]) -> None:
    """In a W&B sweep, log a run that has finished before to a new W&B run, so that the sweep gets its metric."""
    if os.environ.get("WANDB_SWEEP_ID"):
        with WandbMirror.open(config, record) as mirror:
            mirror.summary(summary)


def check(logger: LoggerConfig) -> None:
    """Check the API key before a run begins, so that a missing one leaves no partial run.

    Raises:
        UserError: ``logger.mode=online`` without a usable API key.
    """
    if logger.name == "wandb" and logger.mode == "online":  # the other modes need no key, and importing W&B takes time
        with suppress(ImportError):
            choose_mode(logger)


def choose_mode(logger: LoggerConfig) -> tuple[Mode, str]:
    """The mode and its reason: the lower of ``logger.mode`` and W&B's own setting.

    W&B's setting is WANDB_MODE, or that of the commands ``wandb offline`` and ``wandb disabled``.

    Raises:
        UserError: ``logger.mode=online`` without a usable API key.
    """
    import wandb

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    if settings.mode == "disabled":
        return "disabled", "W&B's own setting, such as WANDB_MODE=disabled"
    if settings.mode in ("offline", "dryrun"):
        return "offline", "W&B's own setting, such as WANDB_MODE=offline"
    if logger.mode == "offline":
        return "offline", "logger.mode=offline"
    problem = _key_problem()
    if problem and logger.mode == "online":
        raise UserError(f"logger.mode=online: {problem}; or set logger.mode=offline")
    return ("offline", problem) if problem else ("online", "")


def _attempts(folder: Path) -> list[dict[str, Any]]:
    """The W&B runs of a run so far; none if wandb.json is damaged."""
    attempts = (read_json_or_none(folder / "wandb.json") or {}).get("attempts")
    is_valid = isinstance(attempts, list) and all(isinstance(one, dict) and "id" in one for one in attempts)
    return list(attempts) if attempts and is_valid else []


def _key_problem() -> str | None:
    """The problem with the API key, which W&B reads from WANDB_API_KEY, its settings or netrc; None if it is fine."""
    import wandb

    try:
        found = wandb.login(prompt=False, verify=False)  # does not contact the user or the server
    except wandb.errors.AuthenticationError as error:
        return first_line(error)
    return None if found else "no API key is set; `wandb login` or WANDB_API_KEY sets one"


def _settings(timeout_seconds: float) -> Any:
    import wandb

    # The rest is for switching to offline mode and closing files.
    budget = timeout_seconds - min(1.0, timeout_seconds / 2)
    return wandb.Settings(
        init_timeout=budget,
        finish_timeout=budget,
        finish_timeout_raises=True,
        silent=True,
        console="off",  # a wrapped stdout disturbs the progress bar
        symlink=False,
        disable_git=True,  # they are in environment.json, without secrets
        disable_code=True,
        x_disable_meta=True,
        x_save_requirements=False,
    )


def _sync_command(run: Any, option: str = "") -> str:
    return f"wandb sync {option}{shlex.quote(run.settings.sync_dir)}"


def _drop_service() -> None:
    """Stop W&B's service process, so that a broken one does not disturb the exit or the next job."""
    with suppress(Exception, SystemExit):
        import wandb

        wandb.teardown()


def _exit_code(error: BaseException | None) -> int:
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        return error.code or 0
    return int(error is not None)


def _say(line: str) -> None:
    print(f"W&B: {line}", flush=True)
