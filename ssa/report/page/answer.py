"""The first words of the page: what the evidence says, and at what scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ssa.config import SCALES
from ssa.report.page.claims import MARKS, Claim, sized
from ssa.report.page.results import ExperimentResults

_MEANING = {
    "laptop": "small models, minutes on two cores",
    "overnight": "small models, hours on two cores",
    "gpu": "published models on one GPU",
    "paper": "as large as sensible",
}


def answer(claims: Sequence[Claim]) -> str:
    """How many of the sizes that the paper gives are reached; empty where it gives none."""
    known = sized(claims)
    if not known:
        return ""
    reached = sum(claim.verdict.startswith("holds, at least the paper's size") for claim in known)
    kinds = Counter(
        _without_seeds(claim.verdict) for claim in sorted(known, key=lambda one: list(MARKS).index(one.kind))
    )
    details = "; ".join(f"{verdict}: {n}" for verdict, n in kinds.items())
    subject = f"{reached or 'None'} of the {len(known)} comparisons for which the paper gives a size"
    return f"{subject} {'reach' if reached > 1 else 'reaches'} it here. {details[0].upper()}{details[1:]}."


def scale_of(results: Sequence[ExperimentResults]) -> str:
    """The scales that the results are of, and what has not been run."""
    counts = Counter(one.scale for one in results if one.is_evidence)
    meant = [scale for scale in SCALES if scale in _MEANING]
    found = [f"{_items(counts[scale])} at scale={scale} ({_MEANING[scale]})" for scale in meant if counts[scale]]
    sentences = [f"{'; '.join(found)}." if found else "Nothing has been run at a scale that counts."]
    unused = [f"scale={scale} ({_MEANING[scale]})" for scale in meant if not counts[scale]]
    sentences += [f"No result at {' or '.join(unused)}."] if unused and found else []
    missing = [one.title.partition(":")[0] for one in results if not one.is_evidence]
    sentences += [f"Not run: {', '.join(missing)}."] if missing else []
    return " ".join(sentences)


def _without_seeds(verdict: str) -> str:
    """Such as "undecided" of "undecided, 4 more seeds"."""
    return ", ".join(part for part in verdict.split(", ") if not part.endswith(("more seeds", "more seed", " seeds")))


def _items(count: int) -> str:
    return f"{count} item{'s' if count > 1 else ''}"
