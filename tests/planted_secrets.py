"""Made-up secrets of every format that is known, each as it would stand in a text."""

from __future__ import annotations

_HEX, _TEXT = "0123456789abcdef" * 4, "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zAcCeEgGiIkKmMoOqQ"  # no run of either is a word


def _text(length: int) -> str:
    return (_TEXT * 4)[:length]


# Values that are secrets by their format alone: in a value of the config, in the name of a file
TOKENS = {
    "Hugging Face": f"hf_{_text(34)}",
    "W&B": f"wandb_v1_{_text(40)}",
    "OpenAI": f"sk-{_text(48)}",
    "OpenAI project": f"sk-proj-{_text(60)}_{_text(20)}",
    "model provider": f"sk-ant-api03-{_text(80)}-{_text(8)}AA",
    "GitHub": f"ghp_{_text(36)}",
    "GitHub OAuth": f"gho_{_text(36)}",
    "GitHub app": f"ghs_{_text(36)}",
    "GitHub fine-grained": f"github_pat_{_text(22)}_{_text(59)}",
    "GitLab": f"glpat-{_text(20)}",
    "Slack bot": f"xoxb-123456789012-123456789012-{_text(24)}",
    "Slack user": f"xoxp-123456789012-{_text(32)}",
    "AWS": "AKIA" + _text(40).upper()[:16],
    "AWS temporary": "ASIA" + _text(40).upper()[:16],
    "Google": f"AIza{_text(35)}",
    "Google OAuth": f"ya29.{_text(60)}",
    "Stripe": f"sk_live_{_text(24)}",
    "Stripe restricted": f"rk_live_{_text(24)}",
    "npm": f"npm_{_text(36)}",
    "PyPI": f"pypi-AgEIcHlwaS5vcmc{_text(60)}",
    "SendGrid": f"SG.{_text(22)}.{_text(43)}",
    "Twilio": f"SK{_HEX[:32]}",
    "Telegram": f"1234567890:{_text(35)}",
    "Discord": f"M{_text(23)}.{_text(6)}.{_text(38)}",
    "JWT": f"eyJ{_text(20)}.eyJ{_text(30)}.{_text(43)}",
    "Docker": f"dckr_pat_{_text(27)}",
    "Vault": f"hvs.{_text(24)}",
}

# Text around a secret, and the secret: in the code, on the command line, in the environment
IN_TEXT = {
    "W&B key": (f"WANDB_API_KEY={_HEX[:40]}", _HEX[:40]),
    "W&B login": (f"wandb login {_HEX[:40]}", _HEX[:40]),
    "AWS secret": (f"aws_secret_access_key = {_text(39)}/", _text(39)),
    "password": ("password: tr0ub4dor", "tr0ub4dor"),
    "password of a variable": ("export DB_PASS=tr0ub4dor", "tr0ub4dor"),
    "token": ("HF_TOKEN=tr0ub4dor", "tr0ub4dor"),
    "API key": ('"api_key": "tr0ub4dor",', "tr0ub4dor"),
    "URL": ("git remote add o https://me:tr0ub4dor@example.invalid/a.git", "tr0ub4dor"),
    "URL with an @": ("https://me:tr0ub@4dor@example.invalid/a", "tr0ub@4dor"),
    "URL of a token": (f"https://{_text(40)}@example.invalid/a.git", _text(40)),
    "database": ("DATABASE_URL=postgres://me:tr0ub4dor@db.invalid:5432/a", "tr0ub4dor"),
    "redis": ("redis://:tr0ub4dor@db.invalid:6379/0", "tr0ub4dor"),
    "Bearer": ("curl -H 'Authorization: Bearer tr0ub4dor'", "tr0ub4dor"),
    "Basic": ("Authorization: Basic bWU6dHIwdWI0ZG9y", "bWU6dHIwdWI0ZG9y"),
    "header": ("headers = {'X-Api-Key': 'tr0ub4dor'}", "tr0ub4dor"),
    "curl": ("curl -u me:tr0ub4dor https://example.invalid", "tr0ub4dor"),
    "netrc": ("machine example.invalid login me password tr0ub4dor", "tr0ub4dor"),
    "netrc, a line": ("  password tr0ub4dor", "tr0ub4dor"),
    "pgpass": ("db.invalid:5432:name:me:tr0ub4dor", "tr0ub4dor"),
    "Slack webhook": (f"https://hooks.slack.com/services/T00000000/B00000000/{_text(24)}", _text(24)),
    "Discord webhook": (f"https://discord.com/api/webhooks/123456789012345678/{_text(68)}", _text(68)),
    "Azure account": (f"AccountName=a;AccountKey={_text(84)}==;EndpointSuffix=b", _text(84)),
    "Azure SAS": (f"https://a.blob.invalid/b?sv=2022-11-02&sig={_text(43)}%3D&sp=r", _text(43)),
    "S3 signature": (f"https://a.invalid/b?X-Amz-Signature={_HEX}&x=1", _HEX),
    "query": (f"https://a.invalid/b?api_key={_text(20)}&x=1", _text(20)),
    "private key": (
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{_text(70)}\n{_text(70)}\n-----END OPENSSH PRIVATE KEY-----",
        _text(70),
    ),
    "private key in JSON": (
        f'"private_key": "-----BEGIN PRIVATE KEY-----\\n{_text(64)}\\n-----END PRIVATE KEY-----\\n"',
        _text(64),
    ),
    "connection string": ("Server=a;Uid=me;Pwd=tr0ub4dor;", "tr0ub4dor"),
    "after a newline that is escaped": (f'"a\\nhf_{_text(34)}"', f"hf_{_text(34)}"),
}
IN_TEXT |= {name: (f"{name}('{token}')", token) for name, token in TOKENS.items()}
