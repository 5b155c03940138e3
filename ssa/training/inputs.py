"""The inputs of a run, by content: text, tokenizer and pretrained weights, which its config only names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from ssa.config import Config, DataConfig
from ssa.errors import UserError
from ssa.files import cache_root, hash_of_bytes, hash_of_file
from ssa.pretrained.source import weights_hash
from ssa.record.inputs import Inputs
from ssa.redaction import redact
from ssa.text.corpus import open_corpus
from ssa.text.sources.local import find_files
from ssa.text.tokenization import published_definition, trained_entries

Reader = Callable[[], dict[str, str]]


def read_inputs(data: DataConfig, init_from: str | None) -> Inputs:
    """The hash of each input by setting and name, without the settings whose files are not available."""
    found: Inputs = {}
    for setting, read in _readers(data, init_from).items():
        with suppress(UserError, OSError):
            found[setting] = {redact(name): digest for name, digest in read().items()}
    return found


def inputs_of(configs: Iterable[Config]) -> Inputs:
    """All inputs of several runs."""
    found: Inputs = {}
    for data, init_from in dict.fromkeys((config.data, config.init_from) for config in configs):
        for setting, files in read_inputs(data, init_from).items():
            found.setdefault(setting, {}).update(files)
    return found


def _readers(data: DataConfig, init_from: str | None) -> dict[str, Reader]:
    readers: dict[str, Reader] = {}
    if data.source == "text":
        globs = {"data.train": data.train, "data.validation": data.validation, "data.test": data.test}
        readers |= {setting: partial(_files, setting, glob, data) for setting, glob in globs.items() if glob}
    elif data.path:
        readers["data.path"] = lambda: {str(data.path): open_corpus(data).fingerprint}
    else:
        readers["data"] = lambda: {f"the text of {data.source}": open_corpus(data).fingerprint}
    readers["data.tokenizer"] = partial(_tokenizer, data.tokenizer, data.cache_dir)
    if init_from:
        readers["init_from"] = lambda: {init_from: weights_hash(init_from)}
    return readers


def _files(setting: str, glob: str, data: DataConfig) -> dict[str, str]:
    root = cache_root(data.cache_dir)
    return {str(path): hash_of_file(path, root) for path in find_files(setting, glob)}


def _tokenizer(name: str, cache_dir: str | None) -> dict[str, str]:
    if trained_entries(name):  # it depends on the text alone
        return {}
    return {name: hash_of_bytes(published_definition(name, cache_dir).encode())}
