"""The table and conclusions of a grid."""

from __future__ import annotations

import math
import shlex
import statistics
from collections import Counter
from collections.abc import Sequence

from experiments.engine.conclusion import ClaimConclusion
from experiments.engine.context import ExperimentContext
from experiments.engine.design import RESERVED_SEED
from experiments.engine.grid import Metric
from experiments.engine.grid_figure import draw_differences
from experiments.engine.grid_results import Results, Statistic
from experiments.engine.grid_runs import GridCell
from ssa.evaluation import catalog
from ssa.paths import command
from ssa.report import tables
from ssa.report.tables import State
from ssa.statistics import Estimate, shown

_NONE = tables.TableCell("", "none")
_GRAVEST: tuple[State, ...] = ("failed", "damaged", "missing")


def write(results: Results, context: ExperimentContext) -> None:
    context.table("runs", results.run_table())
    context.table("statistics", results.statistic_table())
    if search := results.search_table():
        context.table("search", search)
    context.show(table(results, [] if results.is_on_other_text else results.experiment.references()))
    compared = [metric for metric in results.grid.metrics if metric.compared and results.is_measured(metric)]
    for metric in compared[:1]:
        differences = {
            group: {row.name: _differences(results, metric, group, row.name) for row in results.grid.rows[1:]}
            for group in results.groups
        }
        draw_differences(context, results.grid, metric, differences, results.variants, _seeds(results))
    claims = results.grid.claims_at(results.settings.scale)
    context.conclude(*map(ClaimConclusion.of, claims, results.decisions()))


def _differences(results: Results, metric: Metric, group: str, row: str) -> list[float]:
    """Differences of a row to the first at equal seed."""
    values, bases = results.pairs(group, row, results.grid.rows[0].name, metric)
    return [value - other for value, other in zip(values, bases, strict=True)]


def table(results: Results, references: Sequence[dict[str, str]]) -> tables.Table:
    """One row for each group and row; next to each metric its difference, p-value and the paper's value.

    In references ``quantity`` is "<group>: <metric>", and ``method`` the row.
    """
    grid, several = results.grid, len(results.grid.groups) > 1
    papers = {(cell["quantity"], cell["method"]): cell for cell in references}
    known = [cell["quantity"] for cell in references if cell["value"] != "-"]
    with_paper = {metric.name for metric in grid.metrics if any(key.endswith(f": {metric.name}") for key in known)}
    first = ["group", "variant"] if results.experiment.is_own else ["model", "temperature"]
    columns = first if several else first[1:]
    for metric in grid.metrics:
        columns += [metric.name, *(["difference", "p (Holm)"] if metric.compared else [])]
        columns += ["paper"] if metric.name in with_paper else []
    found = {(one.group, one.row, one.metric.name): one for one in results.statistics}
    rows = []
    for group in grid.groups:
        if results.is_on_other_text and group.name not in results.groups:
            continue
        for row in grid.rows:
            cells = [tables.TableCell(name) for name in ((group.name, row.name) if several else (row.name,))]
            for metric in grid.metrics:
                one = found.get((group.name, row.name, metric.name))
                if results.has(group.name, metric):
                    cells += _measured(results, one) if one else _unmeasured(results, group.name, metric)
                else:
                    cells += [_NONE] * (3 if metric.compared else 1)
                if metric.name in with_paper:
                    cells.append(_paper(papers.get((f"{group.name}: {metric.name}", row.name))))
            rows.append(tuple(cells))
    return tables.Table(results.experiment.name, _caption(results), tuple(columns), tuple(rows))


def _measured(results: Results, one: Statistic) -> list[tables.TableCell]:
    state, note = _trouble(results, one)
    cells = [tables.TableCell(_text(one.mean, one.metric.digits) if one.mean.n else "", state, one.runs, note)]
    if one.metric.compared and one.row == results.grid.rows[0].name:
        cells += [tables.TableCell("baseline", "none"), _NONE]
    elif one.metric.compared:
        ids = one.runs + one.base_runs
        difference, pairs = _text(one.difference, one.metric.digits), one.difference.n
        seeds = results.n_seeds(one.group)
        note = _unpaired(results, one, seeds) if pairs < seeds else ""
        cells.append(
            tables.TableCell(difference, "value", ids, note) if pairs else tables.TableCell("", "missing", (), note)
        )
        cells.append(_NONE if math.isnan(one.p_holm) else tables.TableCell(f"{one.p_holm:.2g}", "value", ids))
    return cells


def _unpaired(results: Results, one: Statistic, seeds: int) -> str:
    """Why a difference lacks seeds, and the command that fills those trained on different machines."""
    base, pairs = results.grid.rows[0].name, one.difference.n
    mixed = results.mixed(one.group, one.row, base, one.metric)
    note = f"At {pairs} of {seeds} seeds"
    if pairs + len(mixed) < seeds:
        note += f": {'some' if mixed else 'the other'} seeds lack a run of one of the two rows"
    for seed, (first, second) in mixed.items():
        note += f"; seed {seed} is not paired: {one.row} was trained {first}, {base} {second}"
    if not mixed:
        return f"{note}."
    cells = [GridCell(one.group, row, seed) for seed in mixed for row in (one.row, base)]
    folders = [str(results.frame.at[results.run_id(cell), "folder"]) for cell in cells if cell not in results.recorded]
    return f"{note}. To fill it: {f'rm -r {shlex.join(folders)} && ' if folders else ''}{_command(results)}"


def _text(estimate: Estimate, digits: int) -> str:
    """The mean, and the interval unless n = 1 or all values are equal."""
    if estimate.n == 1 or estimate.sd <= 1e-12 * abs(estimate.mean):  # equal but for rounding
        mean = round(estimate.mean, digits) + 0.0  # no "-0"
        return f"{mean:,.0f}" if digits == 0 else f"{mean:.{digits}f}"
    return shown(estimate, digits)


def _trouble(results: Results, one: Statistic) -> tuple[State, str]:
    """The state of a cell, and a note on its invalid runs with the command that repeats them."""
    cells = [cell for cell in results.runs if (cell.group, cell.row) == (one.group, one.row)]
    gaps = {cell.seed: gap for cell in cells if (gap := results.gap(cell, one.metric))}
    if not gaps:
        return "value", ""
    reasons = Counter(gap.reason for gap in gaps.values())
    texts = [
        f"seed{'s' if count > 1 else ''} {', '.join(str(seed) for seed, gap in gaps.items() if gap.reason == reason)} "
        f"{next(gap.state for gap in gaps.values() if gap.reason == reason)} ({reason})"
        for reason, count in reasons.items()
    ]
    state = next(state for state in _GRAVEST if any(gap.state == state for gap in gaps.values()))
    damaged = [cell for cell in cells if cell.seed in gaps and gaps[cell.seed].state == "damaged"]
    folders = [shlex.quote(str(results.frame.at[results.run_id(cell), "folder"])) for cell in damaged]
    first = f"rm -r {' '.join(folders)} && " if folders and results.settings.source is None else ""
    return state, f"{'; '.join(texts)}. To fill it: {first}{_command(results)}"


def _unmeasured(results: Results, group: str, metric: Metric) -> list[tables.TableCell]:
    scale = results.settings.scale
    if group not in results.groups:
        (at,) = (one.at for one in results.grid.groups if one.name == group)
        start = command(f"-m experiments {results.experiment.name}")
        note = f"Not part of scale={scale}. To fill it: {start} scale={next(iter(at))}"
    else:
        task = next((name for name, of in catalog.GROUPS.items() if metric.task in of), metric.task)
        evaluate = [f"tasks={','.join([*results.settings.tasks(), str(task)])}"]
        evaluate += [argument for argument in results.settings.evaluate if not argument.startswith("tasks=")]
        note = f"Not evaluated at scale={scale}. To fill it: {_command(results, evaluate=evaluate)}"
    return [tables.TableCell("", "unmeasured", (), note), *[_NONE] * (2 if metric.compared else 0)]


def _command(results: Results, **changes: object) -> str:
    return results.experiment.command(results.settings.model_copy(update=changes))


def _paper(cell: dict[str, str] | None) -> tables.TableCell:
    if cell is None or cell["value"] == "-":
        note = cell["note"].rstrip(".") if cell and cell["note"] else "No source gives the paper's figure"
        return tables.TableCell("", "none", (), f"{note[0].upper()}{note[1:]}.")
    return tables.TableCell(f"{cell['value']} ({cell['grade']})", "reference", (), cell["note"])


def _caption(results: Results) -> str:
    settings, grid = results.settings, results.grid
    ids = {run_id for cell in results.runs if (run_id := results.run_id(cell)) in results.frame.index}
    frame = results.frame.loc[sorted(ids, key=str)]
    commits = sorted({commit[:7] for commit in frame["commit"] if commit})
    data = sorted({data_hash[:8] for data_hash in frame["data_hash"] if data_hash})
    parts = [f"Mean and 95% interval (Student's t) over {_seeds(results)}."]
    if any(metric.compared for metric in grid.metrics):
        parts.append(
            f"Difference: to {grid.rows[0].name} at equal seed, paired; p: paired t-test, Holm-corrected over the "
            "differences of the column."
        )
    parts += [*_search(results), *_starts(results), *_time(results)]
    parts += [grid.notes] if grid.notes else []
    parts += [
        f"{metric.name[0].upper()}{metric.name[1:]}: {metric.meaning}." for metric in grid.metrics if metric.meaning
    ]
    texts = sorted({text for text in frame.get("config.data.train", ()) if isinstance(text, str)})
    parts += [f"Text: {', '.join(texts)}."] if texts else []
    parts.append(f"scale={settings.scale}; commit {', '.join(commits) or '-'}; data {', '.join(data) or '-'}.")
    return " ".join(parts)


def _seeds(results: Results) -> str:
    """The number of seeds, by group where it differs."""
    numbers = {group: results.n_seeds(group) for group in results.groups}
    own = {group: number for group, number in numbers.items() if number != results.settings.seeds}
    exceptions = "".join(f" ({number} in {group})" for group, number in own.items())
    return f"{results.settings.seeds} seeds{exceptions}"


def _starts(results: Results) -> list[str]:
    """Sentences on groups whose seeds have several starts, as after training on several machines."""
    said = []
    for group in results.groups:
        starts = {results.origin(cell).start for cell in results.finished(group)}
        if len(starts) > 1:
            said.append(f"In {group} the seeds have {len(starts)} starts, trained on different machines.")
    return said


def _search(results: Results) -> list[str]:
    """Sentences on the search of learning rates, with the results that turn on it."""
    if not any(cell.rates for cell in results.planned):
        return []
    said = [
        f"Each row has the learning rates with the lowest validation loss in its own search at seed {RESERVED_SEED}, "
        f"which is not among the seeds here ({results.settings.scale}_search.csv)."
    ]
    for claim in results.claims_that_turn():
        said.append(
            f"The sign of {claim.row} - {claim.against} in {claim.group} turns on the learning rate: in the search it "
            "differs between the rates that both rows tried."
        )
    return said


def _time(results: Results) -> list[str]:
    """Time beside the tokens, which are equal: a row's training time over the first row's, by group."""
    seconds = Metric(name="seconds", key="train_seconds")
    if seconds.key not in results.frame.columns:
        return []
    first, ratios = results.grid.rows[0].name, list[str]()
    for row in results.grid.rows[1:]:
        found = [results.pairs(group, row.name, first, seconds) for group in results.groups]
        pairs = [own / base for owns, bases in found for own, base in zip(owns, bases, strict=True)]
        ratios += [f"{row.name} {statistics.median(pairs):.2f}"] if pairs else []
    if not ratios:
        return []
    said = "Every row sees the same number of tokens. Training time over that of"
    return [f"{said} {first}, median over pairs, with other runs on the machine: {', '.join(ratios)}."]
