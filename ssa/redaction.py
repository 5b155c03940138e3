"""Keys, tokens and passwords, replaced by ``[redacted]`` in everything that a program writes.

Text is searched for known formats, and for assignments to names such as ``password``; when in doubt, it is replaced.
Keys of the config, such as ``model.temperature.query.token``, are not secrets by name.  Names of files and folders that
the user chose are not changed, except where they are recorded.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from typing import Any, TextIO

REDACTED = "[redacted]"

_TOKENS = (  # after no letter or digit
    r"hf_(?:(?=[a-z]*[A-Z\d])[A-Za-z\d]{16,}|[a-z]{30,})|api_org_[A-Za-z\d]{20,}",  # Hugging Face
    r"wandb_v\d_\w{16,}",
    r"sk-[A-Za-z\d]{16,}|sk-(?:proj|svcacct|admin|ant|or|lf|None)-[\w-]{12,}",  # providers of language models
    r"gsk_[A-Za-z\d]{20,}|xai-[A-Za-z\d]{20,}|r8_[A-Za-z\d]{20,}|nvapi-[\w-]{20,}|pplx-[A-Za-z\d]{20,}",
    r"gh[opsur]_\w{16,}|github_pat_\w{16,}",
    r"gl(?:pat|oas|dt|rt|rtr|cbt|ptt|ft|imt|agent|soat|ffct)-[\w-]{16,}",  # GitLab
    r"xox[a-z](?:\.xox[a-z])?-[\w-]{10,}|xapp-[\w-]{10,}",  # Slack
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z\d]{16}",  # AWS
    r"AIza[\w-]{30,}|ya29\.[\w-]{16,}|GOCSPX-[\w-]{16,}|1//0[\w-]{30,}",  # Google
    r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z\d]{10,}|whsec_[A-Za-z\d+/=]{16,}",  # Stripe
    r"npm_[A-Za-z\d]{20,}|pypi-AgE[\w-]{16,}|dckr_(?:pat|oat)_[\w-]{16,}|dop_v1_[a-f\d]{40,}",
    r"SG\.[\w-]{16,}\.[\w-]{16,}|SK[a-f\d]{32}|key-[a-f\d]{32}",  # SendGrid, Twilio, Mailgun
    r"\d{8,10}:[\w-]{35}(?![\w-])|[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,}",  # bots of Telegram, Discord
    r"sq0(?:atp|csp)-[\w-]{20,}|shp(?:at|ca|pa|ss)_[A-Fa-f\d]{32}|lin_api_[A-Za-z\d]{20,}|ATATT3[\w=-]{20,}",
    r"hvs\.[\w-]{20,}|AGE-SECRET-KEY-1[A-Z\d]{20,}|PMAK-[A-Fa-f\d]{24}-[A-Fa-f\d]{34}|secret_[A-Za-z\d]{40,}",
    r"eyJ[\w-]{8,999}\.[\w-]{8,}\.[\w-]*",  # JWT
)
_IN_CONTEXT = (
    r"(?<=hooks\.slack\.com/)[\w/-]{10,}|(?<=/api/webhooks/)\d+/[\w-]{10,}|(?<=\.webhook\.office\.com/)[\w/@-]{10,}",
    r"(?<=://)[^/\s:@\"']*:[^/\s\"']+(?=@)|(?<=://)(?=[A-Za-z]*\d)\w{20,}(?=@)",  # user:password, or a token, in a URL
    r"(?i:(?<=[?&;])(?:sig|signature|x-(?:amz|goog)-(?:signature|security-token))=[^&\s\"']{8,})",
    r"(?i:(?<=authorization)[\"']?\s*[:=,]\s*[\"']?[^\"'\r\n]+)|(?i:(?<=bearer )[\w.~+/=-]{8,})",
    r"(?<=[Bb]asic )(?=[A-Za-z+/]*[\d=])[A-Za-z\d+/]{8,}={0,2}",
    r"(?<=-u )[\"']?[^\s:\"']+:[^\s\"']+|(?<=--user )[\"']?[^\s:\"']+:[^\s\"']+",  # of curl
    r"(?<=login )\S+\s+password\s+\S+|(?m:^[+-]?[ \t]*password[ \t]+\S+[ \t]*$)",  # .netrc
    r"(?<![\w.*:/-])[\w.*-]+:(?:\d{4,5}|\*):[\w.*-]+:[\w.*-]+:[^\s/\"']+",  # .pgpass
    r"-----BEGIN [A-Z\d ]*PRIVATE KEY(?: BLOCK)?-----[\s\S]*?(?:-----END [A-Z\d ]*PRIVATE KEY(?: BLOCK)?-----|\Z)",
)
_BEFORE = r"(?:(?<![A-Za-z\d])|(?<=\\[nrt])|(?<=%[\dA-Fa-f]{2}))"  # also an escape sequence
_FORMATS = re.compile(rf"{_BEFORE}(?:{'|'.join(_TOKENS)})|{'|'.join(_IN_CONTEXT)}")

_SECRET_NAMES = (
    r"(?:api|access|account|private|auth|signing|encryption|master|license)[_-]?key|(?:api|access|auth|refresh)token"
    r"|passw(?:or)?d|passphrase|secret|credential|(?<![a-z])(?:pass|pwd)(?![a-z])"
)
_TOKEN_NAMES = r"(?<![a-z])token(?![a-z])"  # not tokens, not tokenizer
_SECRET_NAME = re.compile(_SECRET_NAMES, re.IGNORECASE)
_TOKEN_NAME = re.compile(_TOKEN_NAMES, re.IGNORECASE)
_EMPTY = re.compile(r"none|null|true|false|\$\{.*|\$\w+|\[redacted.*|", re.IGNORECASE)  # or a variable
_NO_TOKEN = re.compile(r"-?[\d.]+|<[^<>]*>")  # an id or a text of a vocabulary
_TERM = re.compile(r"(?:.*\.)?(?:query|key|value|output)\.token|token", re.IGNORECASE)  # of a temperature
_LITERAL = re.compile(r"(?=\D*\d)[\w-]{8,}|[\w-]{24,}")
_ASSIGNMENT = re.compile(
    rf"""(?<![\w.-])(?=[\w.-]*(?i:{_SECRET_NAMES}|{_TOKEN_NAMES}))([\w.-]++)"""
    r"""(["']?\s*(?:==?|:)\s*)("[^"\n]*"|'[^'\n]*'|[^\s"']+)"""
)

_HEX_40 = re.compile(r"(?<![\w/\\@.-])[0-9a-fA-F]{40}(?![\w/\\-])")  # a W&B key, but also a commit
_HASH_NAME = re.compile(
    r"""(?:revision|commit|sha\d*|rev|hash|digest|id|experiment|index)s?["']?\s*[:=]?\s*\[?["']?$""", re.IGNORECASE
)


def redacted(value: Any, name: str = "") -> Any:
    """Nested plain values with secrets in their texts replaced; ``name``: their key, which may be that of a hash."""
    if isinstance(value, str):
        is_hash = _HEX_40.fullmatch(value) and _HASH_NAME.search(name)
        return value if is_hash else redact(value)
    if isinstance(value, Mapping):
        return {key: redacted(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item, name) for item in value]
    return value


def redact(text: str) -> str:
    """The text with keys, tokens and passwords replaced."""
    return _redact_short(text) if len(text) < 1000 else _redact(text)


def redact_command(command: Sequence[str]) -> list[str]:
    """The command line with secrets replaced, also in ``name=value`` and ``--name value`` where the name is secret."""
    shown, secret_follows = [], False
    for argument in command:
        name, equals, value = argument.partition("=")
        if secret_follows:
            shown.append(REDACTED)
        elif equals and _is_secret(name.lstrip("+~"), value):
            shown.append(f"{name}={REDACTED}")
        else:
            shown.append(redact(argument))
        secret_follows = not equals and argument.startswith("-") and _names_secret(argument)
    return shown


@contextmanager
def redacted_output() -> Iterator[None]:
    """In this block, what Python code prints is redacted line by line; for a process that prints to a log."""
    with redirect_stdout(_Redacting(sys.stdout)) as out, redirect_stderr(_Redacting(sys.stderr)) as err:
        try:
            yield
        finally:
            out.flush()
            err.flush()


class _Redacting(io.TextIOBase):
    def __init__(self, stream: TextIO) -> None:
        self._stream, self._line = stream, ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        self._stream.writelines(f"{redact(line)}\n" for line in lines)
        return len(text)

    def flush(self) -> None:
        self._stream.write(redact(self._line))
        self._line = ""
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()


def _redact(text: str) -> str:
    text = _ASSIGNMENT.sub(_redact_assignment, _FORMATS.sub(REDACTED, text))
    return _HEX_40.sub(_redact_hex, text)


_redact_short = lru_cache(10_000)(_redact)


def _names_secret(name: str) -> bool:
    return bool(_SECRET_NAME.search(name) or _TOKEN_NAME.search(name))


def _is_secret(name: str, value: str) -> bool:
    value = value.strip("\"'")
    if not _names_secret(name) or name.startswith("model.temperature.") or _EMPTY.fullmatch(value):
        return False
    if name.upper() == "PWD" and value.startswith("/"):  # the working directory
        return False
    is_term = _TERM.fullmatch(name) and not _LITERAL.fullmatch(value)
    return bool(_SECRET_NAME.search(name)) or not (is_term or _NO_TOKEN.fullmatch(value))


def _redact_assignment(match: re.Match[str]) -> str:
    name, sign, value = match.groups()
    quote = value[0] if value[0] in "\"'" else ""
    if not _is_secret(name, value) or (not quote and _is_expression(name, sign, value)):
        return match[0]
    return f"{name}{sign}{quote}{REDACTED}{quote}"


def _is_expression(name: str, sign: str, value: str) -> bool:
    """Whether it is code, such as ``token = next(stream)``, rather than ``HF_TOKEN=abc`` or ``token: abc123def``."""
    is_shell = name.isupper() and sign == "="
    return not (_SECRET_NAME.search(name) or is_shell or _LITERAL.fullmatch(value.rstrip(",;:)]}")))


def _redact_hex(match: re.Match[str]) -> str:
    is_hash = _HASH_NAME.search(match.string[max(0, match.start() - 40) : match.start()])
    return match[0] if is_hash else REDACTED
