"""The special tokens that a pretrained model's tokenizer config names."""

from __future__ import annotations

from ssa.files import expanded, parse_json
from ssa.pretrained.source import text_files
from ssa.text.tokenization import Tokenizer

_FILES = ("tokenizer_config.json", "special_tokens_map.json")
BEGIN, END = ("bos_token", "eos_token"), ("eos_token",)  # keys: what precedes a text, what ends it


def special_token(source: str, tokenizer: Tokenizer, keys: tuple[str, ...]) -> int:
    """The first of these special tokens in the config files beside a tokenizer, else end-of-text.

    ``source``: a Hub id, a folder, or a tokenizer.json.

    Raises:
        UserError: a file is damaged or not available.
    """
    path = expanded(source)
    if path.suffix == ".json" and path.is_file():
        source = str(path.parent)
    for name, content in text_files(source, _FILES).items():
        values = parse_json(content, f"{source}: {name}")
        for token in map(values.get, keys):
            text = token.get("content") if isinstance(token, dict) else token
            found = tokenizer.token_id(text) if isinstance(text, str) else None
            if found is not None:
                return found
    return tokenizer.end_of_text
