"""Where the files outside this package are: in the checkout, or bundled into an installed wheel by `ssa.bundle`."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_BUNDLED = _PACKAGE / "bundled"
INSTALLED = _BUNDLED.is_dir()  # from a wheel; an editable installation is a checkout
ROOT = _BUNDLED if INSTALLED else _PACKAGE.parent
CONF = ROOT / "conf"
EXPERIMENTS = ROOT / "experiments"

_by_command = INSTALLED


def name_commands() -> None:
    """Let `command` name installed commands: this process was started by one, which may be that of a checkout."""
    global _by_command
    _by_command = True


def command(program: str) -> str:
    """What starts a program at the root: ``python train.py`` or ``ssa-train``, ``python -m sweeps`` or ``ssa-sweeps``.

    Args:
        program: a file, or ``-m`` and a package; arguments may follow.
    """
    name, space, arguments = program.removeprefix("-m ").partition(" ")
    if not _by_command or name.startswith("ssa."):  # a module of this package has no command
        return f"python {program}"
    return f"ssa-{name.removesuffix('.py')}{space}{arguments}"


def typed(words: list[str]) -> list[str]:
    """A program and its arguments, such as ``sys.argv``, with the installed command in place of the program's path."""
    return [command(Path(words[0]).name), *words[1:]] if _by_command else list(words)


def shown(path: str) -> str:
    """A path of the repository as printed on a help page: from `shown_from`; other files as they are."""
    whole = Path(_PACKAGE.parent if path.startswith("ssa/") else ROOT, path)
    if not (whole.exists() and whole.is_relative_to(_PACKAGE.parent)):
        return path
    return whole.relative_to(_PACKAGE.parent).as_posix() + "/" * path.endswith("/")


def shown_from() -> str:
    """The folder that paths on a help page start in, for its heading; empty for a program of a checkout."""
    return str(_PACKAGE.parent) if _by_command else ""


def install(extra: str) -> str:
    """The command that installs an optional part of this package."""
    return f"pip install 'ssa[{extra}]'" if INSTALLED else f"pip install -e '.[{extra}]'"
