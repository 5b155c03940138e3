"""Environment of a run: commit and uncommitted changes, packages, machine, device, command.  Never a secret.

Environment variables are not read.  Anything that looks like a key, a token or a password on the command line or in the
uncommitted changes is replaced by ``[redacted]``, also when in doubt.  Keys of the config, such as
``model.temperature.query.token``, are not secrets by name; their values may still look like one.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from ssa.config import Config, term_names
from ssa.config_errors import leaves

_REDACTED = "[redacted]"
_MAX_DIFF = 2**20  # characters; a longer diff is data rather than code
_MAX_UNTRACKED = 100  # names

_SECRET_NAME = re.compile(
    r"(?:api|access|private|auth)[_-]?key|(?:api|access|auth|refresh)token|passw(?:or)?d|passphrase|secret|credential",
    re.IGNORECASE,
)
_TOKEN_NAME = re.compile(r"(?<![a-z])token(?![a-z])", re.IGNORECASE)  # not tokens, not tokenizer
_EMPTY = re.compile(r"none|null|true|false|\$\{.*|", re.IGNORECASE)
_NO_TOKEN = re.compile(r"-?[\d.]+|<[^<>]*>")  # an id or a text of a vocabulary
_CONFIG_KEYS = frozenset(leaves(Config))
_OPAQUE = re.compile(r"(?=[^\d]*\d)[\w-]{20,}")  # longer than any valid value of a config key named token
_ASSIGNMENT = re.compile(r"""(?<![\w.-])([\w.-]+)(["']?\s*(?:==?|:)\s*)("[^"\n]*"|'[^'\n]*'|[^\s,;"')\]}]+)""")
_VALUES = re.compile(
    r"hf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|wandb_v\d_\w{16,}"
    r"|(?:sk|pk|rk)-[\w-]{16,}"  # model providers
    r"|gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{10,}"  # Slack
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}"  # AWS
    r"|(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # JWT
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # user:password in an address
    r"|(?<=[Bb]earer )[\w.~+/=-]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
_HEX_40 = re.compile(r"(?<![0-9a-fA-F])[0-9a-fA-F]{40}(?![0-9a-fA-F])")  # a W&B key, but also a commit
_COMMIT_NAME = re.compile(r"""(?:revision|commit|sha1?|rev)["']?\s*[:=]?\s*["']?$""", re.IGNORECASE)


class Environment(NamedTuple):
    """Facts of a process and of its code."""

    facts: dict[str, Any]  # the contents of environment.json
    diff: str | None  # the uncommitted changes


def describe(command: Sequence[str] = (), *, source: Path | None = None, **known: Any) -> Environment:
    """The environment of this process, now.

    Args:
        command: the command line of the run, program first.
        source: a file whose git checkout is described; default: of this package.
        known: further facts as plain values: device, precision, ...
    """
    git, diff = _git(source or Path(__file__))
    facts = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": redact_command(command),
        "host": socket.gethostname(),
        "git": git,
        "python": platform.python_version(),
        "machine": {
            "os": platform.platform(),
            "cpu": _cpu_model(),
            "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
            "threads": psutil.cpu_count(),
            "usable_threads": len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else None,
            "memory_bytes": psutil.virtual_memory().total,
        },
        **known,
        "packages": _packages(),
    }
    return Environment(facts, diff)


def redact(text: str) -> str:
    """The text with keys, tokens and passwords replaced."""
    text = _ASSIGNMENT.sub(_redact_assignment, _VALUES.sub(_REDACTED, text))
    return _HEX_40.sub(_redact_hex, text)


def redact_command(command: Sequence[str]) -> list[str]:
    """The command line with secrets replaced, also in ``name=value`` and ``--name value`` where the name is secret."""
    shown, secret_follows = [], False
    for argument in command:
        name, equals, value = argument.partition("=")
        if secret_follows:
            shown.append(_REDACTED)
        elif equals and _is_secret(name.lstrip("+~"), value):
            shown.append(f"{name}={_REDACTED}")
        else:
            shown.append(redact(argument))
        secret_follows = not equals and argument.startswith("-") and _names_secret(argument)
    return shown


def _names_secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(name) or _TOKEN_NAME.search(name))


def _is_secret(name: str, value: str) -> bool:
    value = value.strip("\"'")
    if not _names_secret(name) or _EMPTY.fullmatch(value):
        return False
    if name in _CONFIG_KEYS:
        return bool(_OPAQUE.fullmatch(value))
    is_term = value in term_names()["token"]  # of a temperature
    return bool(_SECRET_NAME.search(name)) or not (is_term or _NO_TOKEN.fullmatch(value))


def _redact_assignment(match: re.Match[str]) -> str:
    name, sign, value = match.groups()
    quote = value[0] if value[0] in "\"'" else ""
    if not _is_secret(name, value) or (not quote and _is_expression(name, sign, value)):
        return match[0]
    return f"{name}{sign}{quote}{_REDACTED}{quote}"


def _is_expression(name: str, sign: str, value: str) -> bool:
    """Whether it is code, such as ``token = next(stream)``, rather than ``HF_TOKEN=abc`` or ``token: abc123def``."""
    is_shell = name.isupper() and sign == "="
    is_literal = re.fullmatch(r"[\w-]{8,}", value) and re.search(r"\d", value)
    return not (_SECRET_NAME.search(name) or is_shell or is_literal)


def _redact_hex(match: re.Match[str]) -> str:
    is_commit = _COMMIT_NAME.search(match.string[max(0, match.start() - 40) : match.start()])
    return match[0] if is_commit else _REDACTED


def _git(source: Path) -> tuple[dict[str, Any] | None, str | None]:
    """State and uncommitted changes of the checkout that tracks the file; (None, None) if there is none."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(source.parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30, check=True)
        return done.stdout

    try:
        ask("ls-files", "--error-unmatch", source.name)  # not for a package installed inside a checkout
        root = ask("rev-parse", "--show-toplevel").rstrip("\n")
        commit = ask("rev-parse", "HEAD").strip()
        diff = ask("-C", root, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD")
        untracked = ask("-C", root, "ls-files", "--others", "--exclude-standard").splitlines()
    except (OSError, subprocess.SubprocessError):
        return None, None
    facts = {"commit": commit, "dirty": bool(diff or untracked), "untracked": untracked[:_MAX_UNTRACKED]}
    return facts, redact(_shorten(diff)) or None


def _shorten(diff: str) -> str:
    if len(diff) <= _MAX_DIFF:
        return diff
    kept = diff[: diff.rfind("\n", 0, _MAX_DIFF) + 1]  # whole lines: half a key would not be recognized
    return f"{kept}[{len(diff) - len(kept)} more characters omitted]\n"


def _cpu_model() -> str:
    """The name of the CPU, which `platform` does not know on Linux."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _packages() -> dict[str, str]:
    names = ((item.metadata["Name"], item.version) for item in metadata.distributions())
    return dict(sorted(((name, version) for name, version in names if name), key=lambda pair: pair[0].lower()))
