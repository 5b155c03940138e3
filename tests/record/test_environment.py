"""The recorded environment, without secrets."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from ssa.config import Config
from ssa.config_errors import leaves
from ssa.record.environment import describe, redact, redact_command

HEX = "0123456789abcdef0123456789abcdef01234567"
CONFIG_KEYS = list(leaves(Config))
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
    assert environment.facts["git"] == {"commit": head(checkout), "dirty": False, "untracked": []}
    assert environment.diff is None


def test_changes_are_recorded_with_any_git_settings(checkout: Path) -> None:
    subprocess.run(["git", "config", "color.ui", "always"], cwd=checkout.parent, check=True)
    subprocess.run(["git", "config", "diff.external", "false"], cwd=checkout.parent, check=True)
    checkout.write_text("x = 2\n")
    (checkout.parent / "new file.py").write_text("y = 1\n")
    environment = describe([], source=checkout)
    assert environment.facts["git"] == {"commit": head(checkout), "dirty": True, "untracked": ["new file.py"]}
    assert environment.diff is not None
    assert environment.diff.splitlines()[-2:] == ["-x = 1", "+x = 2"]


def test_the_diff_can_be_applied(checkout: Path) -> None:
    checkout.write_text("token = tokenizer.encode('text')\nmax_tokens = 1024\n")
    diff = describe([], source=checkout).diff
    subprocess.run(["git", "stash", "-q"], cwd=checkout.parent, check=True)
    subprocess.run(["git", "apply"], cwd=checkout.parent, check=True, input=diff, text=True)
    assert checkout.read_text() == "token = tokenizer.encode('text')\nmax_tokens = 1024\n"


def test_secrets_in_changes_are_redacted(checkout: Path) -> None:
    checkout.write_text(f"api_key = 'open-sesame'\nupload(key='{HEX}', hub='{HF_KEY}')\n")
    diff = describe([], source=checkout).diff
    assert diff is not None
    assert "[redacted]" in diff
    assert not any(secret in diff for secret in ("open-sesame", HEX, HF_KEY))


def test_a_large_diff_is_cut_at_the_end_of_a_line(checkout: Path) -> None:
    checkout.write_text("".join(f"password = 'sesame-{i}'\n" for i in range(100_000)))
    diff = describe([], source=checkout).diff
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


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("+api_key = 'open sesame'", "open sesame"),
        ('+  "apiKey": "sesame",', "sesame"),
        ("+password: sesame", "sesame"),
        ("+DB_PASSWORD=1234", "1234"),
        ("+client_secret == 'sesame'", "sesame"),
        ("+export HF_TOKEN=sesame", "sesame"),
        ("+  token: s3sameopen", "s3sameopen"),
        ("+hub_token = 'sesame'", "sesame"),
        ("+accessToken='sesame'", "sesame"),
        (f"+login('{HF_KEY}')", HF_KEY),
        (f"+{HEX}", HEX),
        (f"+WANDB_API_KEY={HEX}", HEX),
        ("+header = 'Authorization: Bearer sesame.open-1'", "sesame.open-1"),
        ("+url = 'https://me:sesame@example.invalid/x'", "sesame"),
        ("+-----BEGIN RSA PRIVATE KEY-----\n+sesame\n+-----END RSA PRIVATE KEY-----", "sesame"),
        ("+AKIAABCDEFGHIJKLMNOP", "AKIAABCDEFGHIJKLMNOP"),
        ("+ghp_abcdefghij0123456789", "ghp_abcdefghij0123456789"),
    ],
)
def test_a_secret_is_redacted(text: str, secret: str) -> None:
    assert "[redacted]" in redact(text)
    assert secret not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "model.temperature.query.token=none",
        "+    token: shared",
        "+    query={'token': 'mlp', 'position': 'log'}",
        '+    TemperatureTerms(token="gate")',
        '+    token: Literal["none", "shared"]',
        "+token = tokenizer.encode(text)",
        "+eos_token = '<|endoftext|>'",
        "+max_eval_tokens: 1000",
        "+tokenizer: gpt2",
        "+token_id = 50256",
        "+api_key = None",
        "+password: ${secrets.password}",
        f"+revision: {HEX}",
        f"data.revision={HEX}",
        f"Subproject commit {HEX}",
        "index 0123456..89abcde 100644",
        "https://example.invalid/path:80",
    ],
)
def test_text_without_secrets_is_unchanged(text: str) -> None:
    assert redact(text) == text


def test_the_command_line_is_redacted_by_name() -> None:
    command = ["train.py", "+hub.token=sesame", "--api-key", "sesame", "lr=1e-3", "model.temperature.key.token=shared"]
    assert redact_command(command) == [
        "train.py",
        "+hub.token=[redacted]",
        "--api-key",
        "[redacted]",
        "lr=1e-3",
        "model.temperature.key.token=shared",
    ]


@pytest.mark.parametrize("key", CONFIG_KEYS)
@pytest.mark.parametrize("prefix", ["", "+", "++", "~"])
def test_no_config_key_is_a_secret_by_its_name(key: str, prefix: str) -> None:
    command = [f"{prefix}{key}={value}" for value in ("mlp", "gate", "frequency,shared", "'books/*.txt'", "1e-3")]
    assert redact_command(command) == command
    assert [redact(argument) for argument in command] == command


@pytest.mark.parametrize("key", CONFIG_KEYS)
@pytest.mark.parametrize("value", [HF_KEY, HEX, "sk-" + "a1" * 10, "https://me:sesame@example.invalid/x"])
def test_a_value_that_looks_secret_is_redacted_under_any_config_key(key: str, value: str) -> None:
    (shown,) = redact_command([f"{key}={value}"])
    if key != "data.revision" or value != HEX:  # a commit
        assert "[redacted]" in shown
        assert shown.startswith(f"{key}=")


def test_a_long_token_is_redacted_under_a_config_key_named_token() -> None:
    assert redact_command(["model.temperature.query.token=aZ3" + "x" * 20]) == [
        "model.temperature.query.token=[redacted]"
    ]


@pytest.mark.parametrize("key", ["api_key", "password", "token", "hub.token", "model.token", "query.token"])
def test_an_unknown_key_with_a_secret_name_is_redacted(key: str) -> None:
    assert redact_command([f"+{key}=sesame"]) == [f"+{key}=[redacted]"]


@pytest.mark.parametrize(
    "text", ["a" * 10**6, "eyJ" * 300_000, "token=" * 100_000, "://a:" * 100_000, f"{HEX} " * 9000]
)
def test_redaction_takes_time_linear_in_the_text(text: str) -> None:
    begin = time.perf_counter()
    redact(text)
    assert time.perf_counter() - begin < 5
