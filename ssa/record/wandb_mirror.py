"""Weights & Biases as a mirror of metrics.jsonl, which stays the record of truth.  Nothing here can stop a run.

Each attempt at a run (the first, and one for each resume) is a W&B run of its own, ``<run_id>-<random>``, and begins
with all rows that metrics.jsonl has.  An offline W&B run cannot be resumed, and logging rows to an online one again
would double them; this way the newest W&B run of a run always holds its whole record.  The ids are in wandb.json.
The agent of a W&B sweep has chosen id, project and entity already, and W&B takes those.

Rows carry ``step`` and ``tokens`` and never W&B's own ``step=``, which drops rows that come out of order.
"""

from __future__ import annotations

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

Mode = Literal["disabled", "offline", "online"]  # from the least to the most


class WandbMirror:
    """The W&B run of one attempt, or of none: every method may be called in any case, and only `open` raises."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._run: Any = None

    @classmethod
    def open(cls, config: Config, record: RunRecord) -> Self:
        """Starts it, with the rows that the record has; W&B's files go to the record's folder.

        A server that does not answer costs ``logger.timeout_seconds`` at most; then the W&B run is offline.

        Raises:
            UserError: ``logger.mode=online`` without a usable API key.
        """
        mirror = cls(config, record.folder)
        if config.logger.name == "wandb":
            with mirror._or_without("did not start"):
                mirror._start(*choose_mode(config.logger))
            for row in record.rows():
                mirror.log(row)
        return mirror

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        self.finish(_exit_code(error))

    def log(self, row: Mapping[str, Any]) -> None:
        """Adds a row, as metrics.jsonl has it.  Takes microseconds: a process of W&B's own sends it."""
        if self._run:
            with self._or_without("stopped"):
                self._run.log(dict(row))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Sets what W&B's run table shows; the other metrics stay at their last values there."""
        if self._run:
            with self._or_without("stopped"):
                self._run.summary.update(dict(values))

    def finish(self, exit_code: int) -> None:
        """Ends the W&B run, as finished for exit code 0 and else as failed.  To be called always; twice is harmless.

        What the server has not taken within ``logger.timeout_seconds`` stays in the run folder.
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
            except Exception as error:  # W&B's own classes, but also those of sockets and of its service
                mode, reason = "offline", f"no connection: {first_line(error)}"
            else:
                return _say(f"online, {self._run.url}")
        if mode == "disabled":
            return _say(f"off ({reason})")
        self._run = self._init("offline")
        return _say(f"offline ({reason}); send it later: {_sync_command(self._run)}")

    def _init(self, mode: Mode, known: str | None = None) -> Any:
        """A new W&B run, or the known one of this id gone on with."""
        import wandb

        config, logger = self._config, self._config.logger
        run = wandb.init(
            id=known or f"{config.run_id}-{secrets.token_hex(3)}",
            resume="must" if known else None,
            name=config.run_id,
            group=config.experiment,
            project=logger.project,
            entity=logger.entity,
            tags=logger.tags or None,
            config=config.plain(),
            dir=str(self._folder),
            mode=mode if mode != "disabled" else None,
            reinit="create_new",  # two jobs of a multirun are two W&B runs, whatever became of the first
            settings=_settings(logger.timeout_seconds),
        )
        run.define_metric("step")
        run.define_metric("tokens")
        run.define_metric("*", step_metric="step")
        if known is None:
            self._remember(run)
        return run

    def _remember(self, run: Any) -> None:
        this = {"id": run.id, "mode": run.settings.mode, "url": run.url}
        write_json(self._folder / "wandb.json", {"attempts": [*_attempts(self._folder), this]})

    @contextmanager
    def _or_without(self, what: str) -> Iterator[None]:
        """Whatever W&B raises ends the mirror with a line, not the training."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # as many classes as W&B has ways to fail
            self._run = None
            _say(f"{what} ({first_line(error)}); the run goes on, with metrics.jsonl alone")
            _drop_service()


def mirror_evaluation(config: Config, folder: Path, values: Mapping[str, float]) -> None:
    """Adds what an evaluation found to the run's newest W&B run, or where that is not online, to a new one of all rows.

    Nothing here can fail the evaluation.

    Args:
        config: of the run.
        folder: of the run.
        values: by metric name.
    """
    if config.logger.name != "wandb":
        return
    mirror = WandbMirror(config, folder)
    try:
        mode, reason = choose_mode(config.logger)
        newest = _attempts(folder)[-1:]
        online = mode == "online" and newest and newest[0].get("mode") == "online"
        if online and read_status(folder).status == "finished":  # W&B would take another for stopped
            mirror._run = mirror._init("online", newest[0]["id"])
            _say(f"online, {mirror._run.url}")
        else:
            mirror._start(mode, reason)
            for row in read_rows(folder):
                mirror.log(row)
    except Exception as error:  # as many classes as W&B has ways to fail; it is in the folder whatever they are
        _say(f"did not take the evaluation ({first_line(error)})")
        _drop_service()
    mirror.summary(values)
    mirror.finish(0)


def mirror_finished(config: Config, folder: Path, summary: Mapping[str, Any]) -> None:
    """Gives a W&B sweep that asks for a run that has finished before a W&B run of its rows: its metric counts there.

    Outside a W&B sweep the W&B run that it has is enough.
    """
    if config.logger.name != "wandb" or not os.environ.get("WANDB_SWEEP_ID"):
        return
    mirror = WandbMirror(config, folder)
    with mirror._or_without("did not start"):
        mirror._start(*choose_mode(config.logger))
    for row in read_rows(folder):
        mirror.log(row)
    mirror.summary(summary)
    mirror.finish(0)


def check(logger: LoggerConfig) -> None:
    """To be asked before a run begins, so that a missing key leaves no half-written run.

    Raises:
        UserError: ``logger.mode=online`` without a usable API key.
    """
    if logger.name == "wandb" and logger.mode == "online":  # the other modes always work, and importing W&B takes time
        with suppress(ImportError):
            choose_mode(logger)


def choose_mode(logger: LoggerConfig) -> tuple[Mode, str]:
    """The mode, and why it is not more: the lesser of ``logger.mode`` and what W&B itself is set to.

    W&B is set by WANDB_MODE, or by its commands ``wandb offline`` and ``wandb disabled``.

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
        raise UserError(f"logger.mode=online: {problem}; or take logger.mode=offline")
    return ("offline", problem) if problem else ("online", "")


def _attempts(folder: Path) -> list[dict[str, Any]]:
    """The W&B runs of a run so far; none where wandb.json is damaged, which is only a convenience."""
    return list((read_json_or_none(folder / "wandb.json") or {}).get("attempts", []))


def _key_problem() -> str | None:
    """What is wrong with the API key, which W&B looks for in WANDB_API_KEY, its settings and netrc; None if nothing."""
    import wandb

    try:
        found = wandb.login(prompt=False, verify=False)  # asks neither the user nor the server
    except wandb.errors.AuthenticationError as error:
        return first_line(error)
    return None if found else "no API key is set; `wandb login` or WANDB_API_KEY sets one"


def _settings(timeout_seconds: float) -> Any:
    import wandb

    budget = timeout_seconds - min(1.0, timeout_seconds / 2)  # the rest is for going offline and for closing files
    return wandb.Settings(
        init_timeout=budget,
        finish_timeout=budget,
        finish_timeout_raises=True,
        silent=True,
        console="off",  # a wrapped stdout disturbs the progress bar
        symlink=False,
        disable_git=True,  # environment.json has these, without secrets
        disable_code=True,
        x_disable_meta=True,
        x_save_requirements=False,
    )


def _sync_command(run: Any, option: str = "") -> str:
    return f"wandb sync {option}{shlex.quote(run.settings.sync_dir)}"


def _drop_service() -> None:
    """Lets go of W&B's service process, so that a broken one is not met again at exit or by the next job."""
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
