"""List the licenses of all installed packages; exit code 1 if one is neither permissive nor weak copyleft."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from importlib.metadata import PackageMetadata, distributions

# Permissive, or copyleft of their own files only: identifiers of SPDX, names of classifiers, and older spellings
ALLOWED = re.compile(
    r"\b(MIT|BSD|0BSD|Apache|ISC|PSF|PSFL|Python Software Foundation|CNRI-Python|Zlib|BSL-1\.0|CC0|HPND|Unlicense"
    r"|LLVM-exception|MPL|Mozilla Public License|LGPL|Lesser General Public)\b",
    re.IGNORECASE,
)
REFUSED = re.compile(r"(?<!L)GPL|Affero|(?<!Lesser )General Public|proprietary|commercial", re.IGNORECASE)
# Libraries that torch's own wheel requires on machines with CUDA, under NVIDIA's license; we distribute none of them
EXCEPTIONS = ("nvidia-", "cuda-")


def licenses(metadata: PackageMetadata) -> list[str]:
    """The licenses of a package, all of which apply: an SPDX expression, or classifiers, or a line of text.

    A choice between several stays in one piece.
    """
    expression = metadata.get("License-Expression")
    if expression:
        return re.split(r" AND ", expression.replace("(", "").replace(")", ""))
    classifiers = [
        text.split(" :: ")[-1] for text in metadata.get_all("Classifier") or [] if text.startswith("License")
    ]
    named = [name for name in classifiers if name not in ("OSI Approved", "DFSG approved")]
    lines = (metadata.get("License") or "").strip().splitlines()
    return named or lines[:1] or ["not stated"]


def is_allowed(license: str) -> bool:
    """Whether a license, or one of a choice, is on the list."""
    return any(ALLOWED.search(name) and not REFUSED.search(name) for name in license.split(" OR "))


def main() -> int:
    packages = defaultdict(list)
    refused = []
    for name, metadata in sorted({item.metadata["Name"].lower(): item.metadata for item in distributions()}.items()):
        found = licenses(metadata)
        packages[" AND ".join(found)].append(name)
        if not all(map(is_allowed, found)) and not name.startswith(EXCEPTIONS):
            refused.append(f"{name}: {' AND '.join(found)}")
    for license in sorted(packages):
        print(f"{license}: {', '.join(packages[license])}")
    if refused:
        print(f"error: not on the list of {sys.argv[0]}: {'; '.join(refused)}", file=sys.stderr)
    return bool(refused)


if __name__ == "__main__":
    sys.exit(main())
