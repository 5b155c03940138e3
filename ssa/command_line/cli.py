"""The command line of train.py: Hydra, with one line on stderr and exit code 2 for every mistake of the user.

Configs are checked before anything heavy is imported.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import json
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from hydra import version
from hydra._internal.utils import _run_hydra, get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from ssa.command_line import compose_errors, conf_groups, submitit_output
from ssa.command_line.help_page import FLAGS, help_page
from ssa.command_line.init_from import adopted
from ssa.command_line.output import keep_writable
from ssa.command_line.resume import label, resumed
from ssa.command_line.settings import interrupted
from ssa.command_line.values import read_overrides, with_literal_paths
from ssa.config import Config, parse
from ssa.config_errors import closest
from ssa.errors import EXIT_BAD_INPUT, EXIT_BUG, EXIT_INTERRUPTED, EXIT_LOST, UserError, first_line
from ssa.files import disk_errors
from ssa.paths import CONF, typed
from ssa.pretrained import causal_lm
from ssa.processes import interruptible, launched
from ssa.redaction import redacted

_LABELS = {"model/size": "model.size", "model/temperature": "model.temperature.name", "scale": "scale"}

_FAILED = "failed.jsonl"  # in the folder of a sweep, a line for each failed job, which may run on another machine
_launches = False  # whether this is the user's process, not one started by a launcher
_sweep_dir: Path | None = None  # folder of the sweep that this process launches


def command_line(
    main: Callable[[DictConfig], float],
    check: Callable[[Config], None],
    summarize: Callable[[list[Config]], None],
    program: str,
    purpose: str,
) -> int:
    """Compose ``conf/`` with the arguments of this process and run `main`; returns the exit code.

    Args:
        main: called with each composed config; it calls `run`.
        check: called with the config of each job of a multirun before the first one runs on this machine.
        summarize: called with the config of each job of a multirun, but for sweepers that choose jobs as they go.
        program: the name of its file.
        purpose: one line for the help page.
    """
    global _launches, _sweep_dir
    _launches, _sweep_dir = True, None
    keep_writable()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, instead of printing and exiting
    try:
        arguments = _checked_arguments()
        conf_groups.add_own(arguments.config_dir)
        if arguments.help:
            chosen = next((text for text in arguments.overrides if "=" not in text.rstrip("=")), "")
            print(help_page(program, purpose, chosen))
        else:
            if arguments.multirun or "hydra.mode=MULTIRUN" in arguments.overrides:
                if launched():
                    raise UserError(
                        "-m: a sweep is started once, not by each process of torchrun or Slurm; "
                        "trainer.devices=N starts N processes for each of its jobs"
                    )
                _sweep_dir = _prepare_sweep(arguments.overrides)
                (_sweep_dir / _FAILED).unlink(missing_ok=True)
            if "submitit" in read_overrides(arguments.overrides).get("hydra/launcher", ""):
                submitit_output.say_once()
            with interruptible(), disk_errors():
                jobs = _check_jobs_first(check)
                _compose_and_run(main, arguments)
                if jobs:
                    summarize(jobs)
        sys.stdout.flush()
    except UserError as error:
        return _say(str(error))
    except KeyboardInterrupt as error:
        return interrupted(error)
    return _sweep_result()


def _compose_and_run(main: Callable[[DictConfig], float], arguments: argparse.Namespace) -> None:
    version.setbase("1.3")
    overrides = list(arguments.overrides)  # Hydra adds its own
    try:
        # As in `hydra.main`, which would read sys.argv once more.
        _run_hydra(arguments, get_args_parser(), main, str(CONF), "config")
    except compose_errors.COMPOSITION_ERRORS as error:  # Hydra's: `run` catches those of a job
        raise UserError(compose_errors.explain(error, overrides)) from None
    except UserError:
        raise
    except Exception as error:
        launcher = read_overrides(overrides).get("hydra/launcher", "basic")
        if _sweep_dir is None or launcher == "basic":
            raise
        _sweep_result()  # a job may have failed besides the one that was killed
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"hydra/launcher={launcher}: {what}; its files: {_sweep_dir}") from None


def _check_jobs_first(check: Callable[[Config], None]) -> list[Config]:
    """Check all jobs of a multirun where Hydra's own sweeper composes them, before it launches the first.

    Returns their configs, once they have been composed.
    """
    jobs: list[Config] = []

    def validate(sweeper: Sweeper, batch: Sequence[Sequence[str]]) -> None:
        assert sweeper.hydra_context is not None
        assert sweeper.config is not None
        refused = []
        for overrides in batch:
            composed = sweeper.hydra_context.config_loader.load_sweep_config(sweeper.config, list(overrides))
            HydraConfig.instance().set_config(composed)
            runs_here = HydraConfig.get().runtime.choices["hydra/launcher"] == "basic"
            with read_write(composed), open_dict(composed):
                del composed["hydra"]
            try:
                config = configure(composed)
                jobs.append(config)
                if runs_here:
                    check(config)
            except UserError as error:
                refused.append(f"[{' '.join(overrides)}] {error}")
        if refused:
            raise UserError(f"{refused[0]}; {len(refused)} of {len(batch)} jobs refused, none started")

    for sweeper in Plugins.instance().discover(Sweeper):
        if sweeper.__name__ == "BasicSweeper":
            sweeper.validate_batch_is_legal = validate  # type: ignore[attr-defined]
    return jobs


def run(composed: DictConfig, job: Callable[[Config, list[str]], float]) -> float:
    """Run a Hydra job; returns its result, or NaN if it failed in a sweep.

    A failure ends the process, with one line for a `UserError` and a traceback for a bug.  In a sweep it is reported
    at once, with the job's overrides; the other jobs run, and the process ends with the exit code of the failure.

    Args:
        composed: the config.
        job: called with the typed config and the command that reproduces it.
    """
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    sent = in_sweep and not _launches  # this process was started by a launcher
    command = typed([f"{HydraConfig.get().job.name}.py", *_overrides()] if sent else sys.argv)
    name = " ".join(_overrides())
    try:
        return job(configure(composed), command)
    except UserError as error:
        line = f"[{name}] {error}" if in_sweep else str(error)
        code = _say(line)
    except SystemExit as error:
        if sent and launched() and error.code in (EXIT_BAD_INPUT, EXIT_BUG, EXIT_LOST):
            return float("nan")  # another process of the run says why
        if not sent or error.code != EXIT_INTERRUPTED:
            raise
        code, line = EXIT_INTERRUPTED, f"[{name}] interrupted"
    except Exception as error:
        traceback.print_exc()
        code, line = EXIT_BUG, f"[{name}] {type(error).__name__}: {error}"
    if not in_sweep:
        sys.exit(code)
    if launched() and os.environ["RANK"] != "0" and "rank " not in line:
        return float("nan")  # rank 0 reports it
    failure = redacted({"job": name, "code": code, "said": "" if not sent else line})
    with open(Path(HydraConfig.get().sweep.dir) / _FAILED, "a", encoding="utf-8") as file:
        file.write(json.dumps(failure) + "\n")
    return float("nan")  # a failed trial, for Hydra's sweepers


def configure(composed: DictConfig) -> Config:
    """The typed config of the current Hydra job.

    Raises:
        UserError: the first mistake in it.
    """
    choices = HydraConfig.get().runtime.choices
    try:
        values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except compose_errors.COMPOSITION_ERRORS as error:
        unresolved: Any = OmegaConf.to_container(composed)
        _check_choices(unresolved, choices)  # a wrong option is the reason
        raise UserError(compose_errors.explain(error, _overrides())) from None
    _check_choices(values, choices)
    if values.get("resume"):
        return resumed(values, _overrides(), set(choices))
    if values.get("init_from") is not None:
        values = adopted(values, _overrides(), choices)
    elif choices["model"] == causal_lm.OPTION:
        raise UserError(f"model={causal_lm.OPTION}: names no model by itself; add init_from=FOLDER_OR_HUB_ID")
    elif isinstance(values.get("model"), dict):
        conf_groups.check_size(values["model"], str(choices["model/size"]))
        values["model"]["size"] = conf_groups.size_name(values["model"], choices)
    return parse(values)


def _overrides() -> list[str]:
    """The overrides of the current Hydra job, as typed."""
    typed: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return list(typed)


def _check_choices(values: dict[str, Any], choices: Mapping[str, Any]) -> None:
    """Refuse groups without an option or with two, and the name of an option in place of its values."""
    for group, options in conf_groups.options().items():
        valid = f"valid: {', '.join(options)}"
        if group not in choices:
            raise UserError(f"{group}: takes exactly one option; {valid}")
        if group == "scale" and isinstance(values[group], dict | list):
            raise UserError(f"{group}={choices[group]}: its file must begin with '# @package _global_' and set values")
        name = label(values, group)
        if group in _LABELS and name is not None and str(name) != choices[group]:
            if conf_groups.is_own(group, str(choices[group])):
                key = _LABELS[group].rpartition(".")[2]
                raise UserError(f"{group}={choices[group]}: its file must set {key}: {choices[group]}, not {name}")
            raise UserError(f"{_LABELS[group]}={name}: only a label; choose with {group}={name}; {valid}")


def _checked_arguments() -> argparse.Namespace:
    parser = get_args_parser()
    parser.error = _refuse_flag  # type: ignore[method-assign]
    arguments = parser.parse_args()
    if arguments.resolve and not arguments.cfg:
        raise UserError("--resolve: only with --cfg; write --cfg job --resolve")
    if arguments.experimental_rerun:
        raise UserError("--experimental-rerun: not supported; resume=RUN_FOLDER continues a run")
    # `plan` has keys of its own, so that Hydra's plan=true would replace them.
    overrides = [re.sub(r"^plan=", "plan.show=", override) for override in arguments.overrides]
    arguments.overrides = with_literal_paths(overrides)
    return arguments


def _refuse_flag(message: str) -> NoReturn:
    flag = message.removeprefix("unrecognized arguments: ").split()[0]
    if "=" in flag and not flag.startswith("-"):
        raise UserError(f"{flag}: after a flag in the middle; write flags first: -m model=gpt2,ssa_gpt2 seed=0,1,2")
    if not flag.startswith("-"):
        raise UserError(f"{message}; see --help")
    known = re.findall(r"--\w+", " ".join(FLAGS))
    raise UserError(
        f"{flag}: unknown flag{closest(flag, known)}; values are set as KEY=VALUE without dashes; "
        f"valid: {', '.join(FLAGS)}"
    )


def _prepare_sweep(overrides: list[str]) -> Path:
    """The folder where the jobs of a sweep report failures: ``hydra.sweep.dir``, or a temporary one.

    Jobs on other machines need one that all machines see; it is beside the runs, and added to `overrides`.
    """
    given = read_overrides(overrides)
    folder, launcher = given.get("hydra.sweep.dir"), given.get("hydra/launcher", "basic")
    if folder is None and launcher != "basic":
        began = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        folder = f"{given.get('output_dir', 'outputs')}/sweeps/{launcher}-{began}-{os.getpid()}"
        overrides.append(f"hydra.sweep.dir='{folder}'")
    if folder is not None and "$" in folder:
        raise UserError(f"hydra.sweep.dir={folder}: valid: a plain path")
    return Path(folder or _scratch_dir())


def _sweep_result() -> int:
    file = _sweep_dir / _FAILED if _sweep_dir else None
    if file is None or not file.exists():
        return 0
    failed = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for said in filter(None, (job["said"] for job in failed)):
        _say(said)
    _say(f"failed jobs: {len(failed)}: " + ", ".join(f"[{job['job']}]" for job in failed))
    codes = {job["code"] for job in failed}
    return next(code for code in (EXIT_BUG, EXIT_BAD_INPUT, EXIT_INTERRUPTED) if code in codes)


def _say(line: str) -> int:
    if launched() and os.environ.get("LOCAL_RANK") != "0" and not line.startswith("rank "):
        return EXIT_BAD_INPUT  # all processes of this node have it; the first one says it
    print("error:", " ".join(line.split()), file=sys.stderr)
    return EXIT_BAD_INPUT


@functools.cache
def _scratch_dir() -> str:
    """A folder for the sweep, which Hydra requires; it is removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="ssa-sweep-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _if_pretrained(tuned: Any, scratch: Any, *, _root_: DictConfig) -> Any:
    """``${if_pretrained:A,B}``: A if ``init_from`` names a pretrained model to fine-tune, else B."""
    return tuned if _root_.get("init_from") else scratch


def _by_scale(smoke: Any, laptop: Any, larger: Any, *, _root_: DictConfig) -> Any:
    """``${by_scale:A,B,C}``: A at scale smoke, B at laptop and overnight, else C."""
    return {"smoke": smoke, "laptop": laptop, "overnight": laptop}.get(_root_.get("scale"), larger)


def _below_steps(steps: int, *, _root_: DictConfig) -> int:
    """``${below_steps:N}``: N, or one step less than ``trainer.steps`` if that is less."""
    most = OmegaConf.select(_root_, "trainer.steps")
    return min(steps, max(most - 1, 0)) if isinstance(most, int) else steps


OmegaConf.register_new_resolver("scratch_dir", _scratch_dir, replace=True)
OmegaConf.register_new_resolver("if_pretrained", _if_pretrained, replace=True)
OmegaConf.register_new_resolver("by_scale", _by_scale, replace=True)
OmegaConf.register_new_resolver("below_steps", _below_steps, replace=True)
