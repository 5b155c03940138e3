"""The recorded environment."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from ssa.record.environment import describe

HEX = "0123456789abcdef0123456789abcdef01234567"
HF_KEY = "hf_" + "aBcDeFgHiJ" * 3


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with one commit that holds code.py."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # as in a git hook
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    code = tmp_path / "repository" / "code.py"
    code.parent.mkdir()
    code.write_text("x = 1\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.invalid"]
        subprocess.run(["git", *identity, *command], cwd=code.parent, check=True)
    return code


def head(checkout: Path) -> str:
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=checkout.parent, check=True, capture_output=True, text=True
    )
    return found.stdout.strip()


def test_facts_describe_this_process() -> None:
    facts = describe(["train.py", "seed=1"], device="cpu", precision="32-true").facts
    assert facts["command"] == ["train.py", "seed=1"]
    assert facts["python"] == platform.python_version()
    assert facts["packages"]["pytest"] == metadata.version("pytest")
    assert facts["machine"]["memory_bytes"] > 2**28
    assert 1 <= facts["machine"]["usable_threads"] <= facts["machine"]["threads"]
    assert (facts["device"], facts["precision"]) == ("cpu", "32-true")
    json.dumps(facts)


def test_clean_checkout(checkout: Path) -> None:
    environment = describe([], source=checkout)
    clean = {"dirty": False, "changed": [], "untracked": [], "diff_sha256": None}
    assert environment.facts["git"] == {"commit": head(checkout), **clean}
    assert environment.diff is None


def test_changes_are_recorded_with_any_git_settings(checkout: Path) -> None:
    subprocess.run(["git", "config", "color.ui", "always"], cwd=checkout.parent, check=True)
    subprocess.run(["git", "config", "diff.external", "false"], cwd=checkout.parent, check=True)
    checkout.write_text("x = 2\n")
    (checkout.parent / "new file.py").write_text("y = 1\n")
    environment = describe([], source=checkout, diff=True)
    assert environment.diff is not None
    assert environment.diff.splitlines()[-2:] == ["-x = 1", "+x = 2"]
    digest = hashlib.sha256(environment.diff.encode()).hexdigest()
    changed = {"dirty": True, "changed": ["code.py"], "untracked": ["new file.py"], "diff_sha256": digest}
    assert environment.facts["git"] == {"commit": head(checkout), **changed}


def test_changes_are_named_and_hashed_unless_asked_for(checkout: Path) -> None:
    checkout.write_text("x = 'open sesame'\n")
    (checkout.parent / f"{HF_KEY}.txt").touch()
    environment = describe([], source=checkout)
    assert environment.diff is None
    assert environment.facts["git"]["changed"] == ["code.py"]
    assert environment.facts["git"]["untracked"] == ["[redacted].txt"]
    assert "sesame" not in str(environment)
    before = environment.facts["git"]["diff_sha256"]
    checkout.write_text("x = 'open sesame!'\n")
    assert describe([], source=checkout).facts["git"]["diff_sha256"] != before


def test_the_diff_can_be_applied(checkout: Path) -> None:
    checkout.write_text("token = tokenizer.encode('text')\nmax_tokens = 1024\n")
    diff = describe([], source=checkout, diff=True).diff
    subprocess.run(["git", "stash", "-q"], cwd=checkout.parent, check=True)
    subprocess.run(["git", "apply"], cwd=checkout.parent, check=True, input=diff, text=True)
    assert checkout.read_text() == "token = tokenizer.encode('text')\nmax_tokens = 1024\n"


def test_secrets_in_changes_are_redacted(checkout: Path) -> None:
    checkout.write_text(f"api_key = 'open-sesame'\nupload(key='{HEX}', hub='{HF_KEY}')\n")
    diff = describe([], source=checkout, diff=True).diff
    assert diff is not None
    assert "[redacted]" in diff
    assert not any(secret in diff for secret in ("open-sesame", HEX, HF_KEY))


def test_a_large_diff_is_cut_at_the_end_of_a_line(checkout: Path) -> None:
    checkout.write_text("".join(f"password = 'sesame-{i}'\n" for i in range(100_000)))
    diff = describe([], source=checkout, diff=True).diff
    assert diff is not None
    assert len(diff) < 2**21
    assert "more characters omitted" in diff
    assert "sesame" not in diff


def test_code_outside_a_checkout(tmp_path: Path, checkout: Path) -> None:
    assert describe([], source=tmp_path / "code.py").facts["git"] is None
    installed = checkout.parent / ".venv" / "code.py"  # inside a checkout, but not of it
    installed.parent.mkdir()
    installed.write_text("")
    assert describe([], source=installed).facts["git"] is None


def test_no_git_program(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert describe([], source=checkout).facts["git"] is None


def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "code.py").write_text("")
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    assert describe([], source=tmp_path / "code.py").facts["git"] is None


def test_environment_variables_are_not_recorded() -> None:
    secret = "kept-to-myself-42"
    program = "import json; from ssa.record.environment import describe; print(json.dumps(describe([]).facts))"
    shown = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "MY_VARIABLE": secret, "WANDB_API_KEY": HEX},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert json.loads(shown)["host"]
    assert secret not in shown
    assert HEX not in shown
