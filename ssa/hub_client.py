"""The Hugging Face Hub through its own client, with every fault as one line that says what to do."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from ssa.errors import UserError, first_line
from ssa.files import read_checked, write_checked

RepoKind = Literal["dataset", "model"]
Field = Literal["data.path", "data.tokenizer", "init_from", "text"]  # of the config, that named the repository
_FIELDS: dict[RepoKind, Field] = {"dataset": "data.path", "model": "data.tokenizer"}
_INSTEAD: dict[Field, str] = {
    "data.path": "data=text or data=pydocs",
    "data.tokenizer": "data.tokenizer=bpe-4096",
    "text": "files, text='books/*.txt'",
    "init_from": "a folder that holds the model, init_from=FOLDER",
}

for _library, _level in (("httpx", "WARNING"), ("httpx2", "WARNING"), ("huggingface_hub.utils._http", "ERROR")):
    logging.getLogger(_library).setLevel(_level)  # else a line for every request or retry, once anybody logs


class HubUnreachable(UserError):
    """No answer, or a refusal that may pass: what was fetched earlier can still be used."""


class NotInRepository(UserError):
    """The repository has no such file."""


def download(
    repo: str, filename: str, kind: RepoKind, revision: str | None = None, *, field: Field | None = None
) -> Path:
    """A file of a repository, from the Hub or from the client's cache of earlier downloads.

    Raises:
        HubUnreachable: it could not be fetched, and is not in the cache.
        NotInRepository: there is no such file.
        UserError: it may not be read.
    """
    from huggingface_hub import hf_hub_download

    with faults_as_user_errors(repo, kind, field):
        return Path(hf_hub_download(repo, filename, repo_type=kind, revision=revision))


def current_commit(repo: str, revision: str | None) -> str:
    """The commit that a dataset's revision (default: its main branch) stands for now.

    Raises:
        HubUnreachable: the Hub cannot be asked.
        UserError: there is no such dataset or revision.
    """
    from huggingface_hub import HfApi

    with faults_as_user_errors(repo, "dataset"):
        return str(HfApi().dataset_info(repo, revision=revision, timeout=10).sha)


def ask_or_recall(record: Path, what: str, ask: Callable[[dict[str, Any] | None], dict[str, Any]]) -> dict[str, Any]:
    """The Hub's answer, kept in the file ``record``; where the Hub cannot be reached, the kept one, and a line says so.

    ``ask`` gets the kept answer, None where there is none.
    """
    kept = read_checked(record)
    try:
        answer = ask(kept)
    except HubUnreachable:
        if kept is None:
            raise
        print(f"{what}: the Hub does not answer; going by what it answered last time", flush=True)
        return kept
    if answer != kept:
        write_checked(record, answer)
    return answer


@contextlib.contextmanager
def faults_as_user_errors(repo: str, kind: RepoKind, field: Field | None = None) -> Iterator[None]:
    """Turn whatever the Hub's clients raise into a `UserError` that names ``field``, by default the usual one."""
    from huggingface_hub import errors

    field = field or _FIELDS[kind]
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{field}={repo}: this {kind} wants its terms accepted: do so on its page, then log in: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{field}={repo}: the Hub has no such {kind}, or it is private (then: hf auth login); "
            "an id looks like ORG/NAME"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"data.revision: {kind} {repo} has no such branch, tag or commit") from None
    except errors.HFValidationError:
        raise UserError(f"{field}={repo}: not an id of the Hub; an id looks like ORG/NAME") from None
    except errors.RemoteEntryNotFoundError as error:
        raise NotInRepository(f"{field}={repo}: {first_line(error)}") from None
    except (_transport_error(), OSError) as error:  # refused, cut off, no route, offline mode, nothing cached
        raise HubUnreachable(
            f"{field}={repo}: cannot be fetched from the Hugging Face Hub ({_reason(error)}); try again, or set "
            "HF_ENDPOINT to a mirror, or run once where there is network (the download is kept in HF_HOME), "
            f"or use {_INSTEAD[field]}"
        ) from error


def _transport_error() -> type[Exception]:
    """The base of what the HTTP library raises; which library it is depends on the client's version."""
    from huggingface_hub.errors import HfHubHTTPError

    return next(base for base in HfHubHTTPError.__mro__ if base.__name__ in ("HTTPError", "RequestException"))


def _reason(error: BaseException) -> str:
    """The line of the first cause: the client wraps what the network said in advice of its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)
