"""Write a web page of all runs and results: ``python report.py``; see ``--help``."""

from __future__ import annotations

import sys

from ssa.command_line.settings import program
from ssa.report.page.settings import ReportSettings


def run(settings: ReportSettings) -> None:
    """Write the page; print its path and size."""
    from ssa.report.page.write import write  # imports pandas

    path = write(settings)
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    sys.exit(
        program(
            ReportSettings,
            run,
            name="report.py",
            purpose="Write a web page of all runs and results: the answer first, then tables, figures, curves.",
            examples=(
                "runs=outputs experiments=experiments",
                "runs=outputs/ablations to=outputs/ablations-report",
                "source=wandb:ENTITY/PROJECT",
            ),
            files={
                "ssa/report/page/": "the page: write.py collects, claims.py corrects verdicts, *.j2 are templates",
                "ssa/report/": "tables as Markdown, LaTeX, CSV and HTML",
                "ssa/record/runs.py": "loads runs as a table, from disk or Weights & Biases",
            },
        )
    )
