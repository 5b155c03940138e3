"""Hugging Face Hub client with every failure as a one-line error that says what to do."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from ssa.errors import UserError, first_line
from ssa.files import read_checked, write_checked

RepoKind = Literal["dataset", "model"]
Field = Literal["data.path", "data.tokenizer", "folder", "init_from", "text"]  # the setting that names the repository
_FIELDS: dict[RepoKind, Field] = {"dataset": "data.path", "model": "data.tokenizer"}
_INSTEAD: dict[Field, str] = {
    "data.path": "data=text or data=pydocs",
    "data.tokenizer": "data.tokenizer=bpe-4096",
    "folder": "a folder that ssa.save has written",
    "text": "files, text='books/*.txt'",
    "init_from": "a folder that holds the model, init_from=FOLDER",
}

for _library, _level in (("httpx", "WARNING"), ("httpx2", "WARNING"), ("huggingface_hub.utils._http", "ERROR")):
    logging.getLogger(_library).setLevel(_level)  # else they log every request and retry


class HubUnreachable(UserError):
    """No answer, or a temporary refusal: cached answers can still be used."""


class NotInRepository(UserError):
    """The repository has no such file."""


def download(
    repo: str, filename: str, kind: RepoKind, revision: str | None = None, *, field: Field | None = None
) -> Path:
    """A file of a repository, from the Hub or the cache of its client.

    Raises:
        HubUnreachable: the file cannot be fetched and is not in the cache.
        NotInRepository: no such file.
        UserError: no such repository, or no access to it.
    """
    from huggingface_hub import hf_hub_download

    with hub_errors(repo, kind, field):
        return Path(hf_hub_download(repo, filename, repo_type=kind, revision=revision))


def current_commit(repo: str, revision: str | None) -> str:
    """The current commit of a dataset's revision (default: its main branch).

    Raises:
        HubUnreachable: no answer from the Hub.
        UserError: no such dataset or revision.
    """
    from huggingface_hub import HfApi

    with hub_errors(repo, "dataset"):
        return str(HfApi().dataset_info(repo, revision=revision, timeout=10).sha)


def ask_or_cached(cache: Path, what: str, ask: Callable[[dict[str, Any] | None], dict[str, Any]]) -> dict[str, Any]:
    """The answer of the Hub, cached in a file; if the Hub is unreachable, the cached answer, with a printed notice.

    ``ask`` is called with the cached answer or None; the notice begins with ``what``.

    Raises:
        HubUnreachable: there is no cached answer either.
    """
    cached = read_checked(cache)
    try:
        answer = ask(cached)
    except HubUnreachable:
        if cached is None:
            raise
        print(f"{what}: the Hub does not answer; using its last known answer", flush=True)
        return cached
    if answer != cached:
        write_checked(cache, answer)
    return answer


@contextlib.contextmanager
def hub_errors(repo: str, kind: RepoKind, field: Field | None = None) -> Iterator[None]:
    """Turns every error of the Hub's client into a `UserError` that names ``field``."""
    from huggingface_hub import errors

    field = field or _FIELDS[kind]
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{field}={repo}: this {kind} is gated: accept its terms on the Hub, then log in: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{field}={repo}: the Hub has no such {kind}, or it is private (then: hf auth login); "
            "an id looks like ORG/NAME"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"data.revision: {kind} {repo} has no such branch, tag or commit") from None
    except errors.HFValidationError:
        raise UserError(f"{field}={repo}: not a Hub id; an id looks like ORG/NAME") from None
    except errors.RemoteEntryNotFoundError as error:
        raise NotInRepository(f"{field}={repo}: {first_line(error)}") from None
    except (_transport_error(), OSError) as error:  # refused, cut off, no route, offline mode, nothing cached
        raise HubUnreachable(
            f"{field}={repo}: cannot be fetched from the Hugging Face Hub ({_reason(error)}); try again, or set "
            "HF_ENDPOINT to a mirror, or run once with network access (downloads are cached in HF_HOME), "
            f"or use {_INSTEAD[field]}"
        ) from error


def _transport_error() -> type[Exception]:
    """Base class of the HTTP library's errors; the library depends on the client's version."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__mro__ if base.__name__ in ("HTTPError", "RequestException"))


def _reason(error: BaseException) -> str:
    """First line of the root cause, which the client wraps in advice of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
