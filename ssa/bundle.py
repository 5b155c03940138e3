"""Build step of the wheel: files at the root that programs read are copied into ``ssa/bundled``; see `ssa.paths`.

setuptools loads this file alone, before the package and its dependencies are there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools.command.build_py import build_py

PROGRAMS = ("train.py", "evaluate.py", "generate.py", "export.py", "report.py")
_KINDS = {
    "conf": ("**/*.yaml",),
    "experiments": ("**/*.py", "**/*.yaml", "**/*.j2", "**/README.md", "*/reference.csv"),
    "sweeps": ("*.py", "*.yaml", "README.md"),
}
# Of the committed results, those that a grid starts from: finished runs, and what a plan is estimated from; and those
# that `experiments.engine.evidence` reads
_RESULTS = ("records.parquet", "runs.csv", "provenance.json", "conclusions.csv", "statistics.csv")


def bundled(root: Path) -> list[Path]:
    """The files to bundle, relative to the root of the checkout."""
    found = [root / name for name in PROGRAMS]
    found += [path for folder, kinds in _KINDS.items() for kind in kinds for path in (root / folder).glob(kind)]
    found += [path for name in _RESULTS for path in (root / "experiments").glob(f"*/results/*_{name}")]
    return sorted(path.relative_to(root) for path in found if not path.name.startswith("smoke_"))  # not committed


def copy(root: Path, target: Path) -> None:
    """Copy them into a folder, in place of what an earlier build left there."""
    shutil.rmtree(target, ignore_errors=True)
    for path in bundled(root):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, target / path)


class BuildWithBundle(build_py):
    """The step of setuptools that collects the package, with the bundle."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            copy(Path(), self._target)

    def get_source_files(self) -> list[str]:
        """What a source distribution contains."""
        return [*super().get_source_files(), *map(str, bundled(Path()))]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs = super().get_outputs(include_bytecode)
        return [*outputs, *(str(self._target / path) for path in bundled(Path()) if not self.editable_mode)]

    @property
    def _target(self) -> Path:
        return Path(self.build_lib, "ssa", "bundled")
