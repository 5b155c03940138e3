from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from ssa import progress
from ssa.progress import ProgressBar, Row, counted, duration


class Clock:
    """Stands in for ``time.perf_counter``; tests set ``now``, in seconds."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(progress, "time", Clock())
    return progress.time  # type: ignore[return-value]


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=80, color_system=None)


def output(bar: ProgressBar) -> str:
    assert isinstance(bar.console.file, io.StringIO)
    return bar.console.file.getvalue()


def test_without_a_terminal_a_line_is_printed_at_intervals(clock: Clock) -> None:
    with ProgressBar("work", 40, completed=10, unit="tokens", interval=30, console=console(False)) as bar:
        clock.now += 10
        bar.advance(5)
        assert output(bar) == ""
        clock.now += 20
        bar.advance(5)
        assert output(bar) == "work 20/40  0.3 tokens/s  ETA 1:00\n", "earlier work does not count for the speed"
        clock.now += 29
        bar.update(40, "all of it", rows=[Row("a part", 1, 2)])
    assert len(output(bar).splitlines()) == 1


def test_a_warm_up_does_not_count_for_the_speed(clock: Clock) -> None:
    bar = ProgressBar("step", 10, console=console(False))
    clock.now += 300
    bar.advance()
    bar.restart_clock()
    clock.now += 2
    bar.update(3, line=True)
    assert output(bar).splitlines()[-1] == "step 3/10  ETA 0:07"


def test_the_total_may_be_unknown_or_grow(clock: Clock) -> None:
    bar = ProgressBar("work", unit="MB", interval=1, console=console(False))
    clock.now += 2
    bar.update(1000)
    assert output(bar) == "work 1,000  500 MB/s\n"
    bar.expect(1000)
    bar.expect(500)
    clock.now += 2
    bar.advance(500)
    assert output(bar).splitlines()[1:] == ["work 1,500/1,500  375 MB/s  ETA 0:00"]


def test_the_caller_may_say_when_a_line_is_due(clock: Clock) -> None:
    bar = ProgressBar("step", 400, console=console(False))
    for step in range(1, 5):
        clock.now += 100
        bar.update(step, f"{step}/400  loss [3]", line=step == 2)
    assert output(bar) == "step 2/400  loss [3]  ETA 11:03:20\n"


def test_on_a_terminal_there_is_a_bar_and_no_line(clock: Clock) -> None:
    with ProgressBar("work", 4, interval=0, console=console(True)) as bar:
        clock.now += 1
        bar.update(1, rows=[Row("one", 1, 2, "text of one"), Row("[two]", 0, 2)])
        bar._bars.refresh()
        shown = output(bar)
        bar.update(2, rows=[Row("[two]", 1, 2)])
    assert "work ━━━━━" in shown
    assert "1/4  ETA 0:03" in shown
    assert "text of one" in shown
    last = output(bar).splitlines()[-3:-1]
    assert "2/4" in last[0]
    assert last[1].strip().startswith("[two]")


def test_nothing_is_left_of_a_transient_bar(clock: Clock) -> None:
    with pytest.raises(KeyboardInterrupt), ProgressBar("work", 1, console=console(True), transient=True) as bar:
        raise KeyboardInterrupt
    assert output(bar).endswith("\x1b[1A\x1b[2K")


def test_it_goes_to_standard_error(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("work", 2) as bar:
        assert bar.console.file is sys.stderr
        bar.update(0, line=True)
    assert capsys.readouterr().err == "work 0/2  ETA ?\n"


def test_one_is_singular() -> None:
    assert [counted(number, "documents") for number in (0, 1, 1000)] == ["0 documents", "1 document", "1,000 documents"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3723, "1:02:03"), (3e5, "3.5 days"), (4e8, "13 years")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
