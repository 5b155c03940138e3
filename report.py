"""One page of all runs and results: ``python report.py``; see ``--help``."""

from __future__ import annotations

import sys

from ssa.command_line.settings import program
from ssa.report.page.settings import ReportSettings


def run(settings: ReportSettings) -> None:
    """Import what is heavy only now: a mistyped key is refused at once."""
    from ssa.report.page.write import write

    path = write(settings)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    sys.exit(
        program(
            ReportSettings,
            run,
            name="report.py",
            purpose="Write one page of all runs and results: verdicts, tables, figures, curves, differences.",
            examples=(
                "runs=outputs experiments=experiments",
                "runs=outputs/ablations to=outputs/ablations-report",
                "source=wandb:ENTITY/PROJECT",
            ),
        )
    )
