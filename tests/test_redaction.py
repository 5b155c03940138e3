"""Secrets are redacted wherever they are recorded, and nothing else is."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from conftest import ROOT
from planted_secrets import IN_TEXT, TOKENS

from ssa.command_line.compose import configured
from ssa.config import Config, parse
from ssa.config_errors import leaves
from ssa.errors import UserError
from ssa.redaction import redact, redact_command, redacted

HEX = "0123456789abcdef0123456789abcdef01234567"
CONFIG_KEYS = list(leaves(Config))
HF_KEY = "hf_" + "aBcDeFgHiJ" * 3


@pytest.mark.parametrize(("text", "secret"), IN_TEXT.values(), ids=IN_TEXT)
def test_every_format_is_redacted_in_text(text: str, secret: str) -> None:
    for line in (text, f"+{text}\n+x = 1\n", f"# see {text}", f'{{"a": "{text}"}}'):
        if not text.startswith("  password") or line.startswith(("+", " ")):  # found at the start of a line only
            assert secret not in redact(line)
        assert redact(redact(line)) == redact(line)


@pytest.mark.parametrize("token", TOKENS.values(), ids=TOKENS)
def test_a_token_is_redacted_in_names_and_in_values(token: str) -> None:
    named = {"a": [token], "b": {"revision": token}, token: 1, "path": f"/data/notes-{token}.txt", "x_y": f"x_{token}"}
    assert token not in str(redacted(list(named.items())))
    assert redacted(f"/data/{token}/x.txt") == "/data/[redacted]/x.txt"


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
        "git@example.invalid:a/b.git",
        f"/home/me/.cache/huggingface/hub/models--a--b/snapshots/{HEX}/config.json",
        f"outputs/main/ssa_gpt2-nano-ssa-text-s0-{HEX[:10]}",
        f"org/name@{HEX}",
        "sk-learn-pipelines-for-text-classification",
        "task-aaaaaaaaaaaaaaaaaaaaaaaa",
        "my_hf_internaltestingmodel",
        "Basic understanding of internationalization, bearer of news",
        "the password is wrong; authorization failed",
        "PWD=/home/me/work",
        "train.py:12:34: error: no such name",
        "/data/passages/keys/secrets.txt",
        "2026-01-01 12:00:00:123456",
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
def test_a_value_that_looks_secret_is_redacted_under_any_config_key(key: str) -> None:
    for value in (*TOKENS.values(), "https://me:sesame@example.invalid/x"):
        (shown,) = redact_command([f"{key}={value}"])
        assert "[redacted]" in shown
        assert shown.startswith(f"{key}=")
        assert redacted({key: [value]})[key][0] in shown


@pytest.mark.parametrize("key", ["api_key", "password", "hub.token", "model.token", "HF_TOKEN"])
def test_an_unknown_key_with_a_secret_name_is_redacted(key: str) -> None:
    assert redact_command([f"+{key}=sesame"]) == [f"+{key}=[redacted]"]


@pytest.mark.parametrize(
    "text",
    [
        "a" * 10**6,
        "eyJ" * 300_000,
        "token=" * 100_000,
        "token-" * 100_000,
        "eyJ-" * 100_000,
        "'-u a:" * 100_000,
        "a:*:" * 100_000,
        "://a:" * 100_000,
        f"{HEX} " * 9000,
    ],
)
def test_redaction_takes_time_linear_in_the_text(text: str) -> None:
    begin = time.process_time()
    redact(text)
    assert time.process_time() - begin < 5


def test_results_are_unchanged() -> None:
    for path in ROOT.glob("experiments/*/results/*"):
        text = path.read_text(encoding="utf-8") if path.suffix in (".csv", ".json", ".md", ".tex", ".html") else ""
        if path.suffix == ".json":
            assert redacted(json.loads(text)) == json.loads(text), path
        else:
            assert redact(text) == text, path


def test_docs_and_configs_are_unchanged() -> None:
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("conf/**/*.yaml"),
        *ROOT.glob("sweeps/*.yaml"),
    ):
        text = path.read_text(encoding="utf-8")
        assert redact(text) == text, path


def test_plain_values_are_unchanged() -> None:
    values: dict[str, Any] = {"a": [1, 2.5, True, None, "x"], "commit": HEX, "data_hash": 64 * "a", "b": {"c": 1e-300}}
    values |= {"commits": [HEX, HEX], "config": configured().plain()}
    assert redacted(values) == values


def test_a_config_is_recorded_without_secrets_and_keeps_its_run_id() -> None:
    config = configured("data=text", f"data.train=/data/{HF_KEY}/*.txt", f"logger.tags=[a,{HF_KEY}]")
    assert (config.data.train, config.logger.tags) == (f"/data/{HF_KEY}/*.txt", ["a", HF_KEY])
    values = config.recorded()
    assert (values["data"]["train"], values["logger"]["tags"]) == ("/data/[redacted]/*.txt", ["a", "[redacted]"])
    assert parse(values).run_id == config.run_id
    ordinary = configured("data=text", "data.train=books/*.txt")
    assert ordinary.recorded() == ordinary.plain()


@pytest.mark.parametrize("key", ["experiment", "logger.project"])
def test_a_secret_is_no_name(key: str) -> None:
    with pytest.raises(UserError, match=f"^{key}: looks like a key or a token"):
        configured(f"{key}={HF_KEY}").recorded()
