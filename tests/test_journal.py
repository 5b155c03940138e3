"""The journal of a task: what is kept survives a kill at any byte, and is not computed again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from evaluation_subjects import EVERYTHING, Seen, subject_in, sums, write_subject

from ssa.evaluation.journal import Journal
from ssa.evaluation.progress import TaskProgress
from ssa.evaluation.scoring import Request
from ssa.evaluation.work import Work

OF = {"settings": {"text": "test", "é": None}, "model": {"context": 64}}
ANSWERS = {f"question {number}": [[-0.1 * number, -3.25], number % 2 == 0] for number in range(4)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation" / ".task.journal"
    journal = Journal(path, OF)
    for asked, answer in ANSWERS.items():
        journal.add([(asked, answer)])
    return path


def known(journal: Journal) -> dict[str, object]:
    return {asked: journal.get(asked) for asked in ANSWERS if journal.get(asked) is not None}


def without_last() -> dict[str, object]:
    return dict(list(ANSWERS.items())[:-1])


def test_answers_come_back_as_they_were(path: Path) -> None:
    assert known(Journal(path, OF)) == ANSWERS
    assert Journal(path, dict(reversed(OF.items()))).get("question 1") == ANSWERS["question 1"]
    assert Journal(path, OF).get("another") is None


def test_a_kill_in_the_middle_of_a_line(path: Path) -> None:
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last, len(whole)):
        path.write_bytes(whole[:end])
        journal = Journal(path, OF)
        assert known(journal) == without_last(), end
        journal.add([("question 3", ANSWERS["question 3"])])
        assert known(Journal(path, OF)) == ANSWERS, end
        assert path.read_bytes() == whole


def test_a_kill_in_the_middle_of_the_first_line(path: Path) -> None:
    whole = path.read_bytes()
    for end in range(whole.index(b"\n") + 1):
        path.write_bytes(whole[:end])
        journal = Journal(path, OF)
        assert known(journal) == {}
        journal.add(list(ANSWERS.items()))
        assert known(Journal(path, OF)) == ANSWERS


@pytest.mark.parametrize("other", [{}, {**OF, "settings": {"text": "validation"}}, {**OF, "more": 1}])
def test_other_settings_start_over(path: Path, other: dict) -> None:
    assert known(Journal(path, other)) == {}
    assert known(Journal(path, OF)) == {}  # there is one file


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"\xff" + content,
        lambda content: b"[]" + content[content.index(b"\n") :],
        lambda content: b"3" + content[content.index(b"\n") :],
        lambda content: content.replace(b'"of"', b'"off"', 1),
        lambda content: content[content.index(b"\n") + 1 :],
        lambda content: content.replace(b"]\n", b"\n", 1),
        lambda content: content.replace(b"\n", b"\n5\n", 1),
        lambda content: content.replace(b"\n", b"\n[[1], 2]\n", 1),
        lambda content: content.replace(b"\n", b"\n\x00\x00\x00\n", 1),
        lambda content: b"",
    ],
)
def test_a_damaged_file_starts_over(path: Path, damage: Callable[[bytes], bytes]) -> None:
    path.write_bytes(damage(path.read_bytes()))
    journal = Journal(path, OF)
    assert known(journal) == {}
    journal.add(list(ANSWERS.items()))
    assert known(Journal(path, OF)) == ANSWERS


def test_it_is_gone_when_the_task_is_done(path: Path) -> None:
    journal = Journal(path, OF)
    journal.remove()
    journal.remove()
    assert not path.exists()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_subject(tmp_path_factory.mktemp("subject") / "model", "llama", EVERYTHING)


@pytest.fixture
def work(model_folder: Path, tmp_path: Path) -> Callable[..., Work]:
    """A function that opens the same task again, as a new process would."""

    def make(batch_size: int | None = None, journal: str = "a", **of: object) -> Work:
        kept = Journal(tmp_path / f".{journal}.journal", {"task": "t", **of})
        return Work(subject_in(model_folder), tmp_path, kept, TaskProgress("t"), batch_size)

    return make


REQUESTS = [Request([start, 1, *range(start, start + 8)], [start, answer]) for start in range(9) for answer in range(3)]


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_scoring_goes_on_where_it_was(work: Callable[..., Work], batch_size: int | None) -> None:
    undisturbed = work(batch_size, "undisturbed")
    through = Seen(undisturbed.subject.model)
    wanted = undisturbed.score(REQUESTS)
    first = work(batch_size)
    before = Seen(first.subject.model, stop_after=len(through.shapes) - 1)
    with pytest.raises(KeyboardInterrupt):
        first.score(REQUESTS)
    again = work(batch_size)
    after = Seen(again.subject.model)
    scores = again.score(REQUESTS)
    assert sums(scores) == pytest.approx(sums(wanted), abs=1e-5)
    assert [score.greedy for score in scores] == [score.greedy for score in wanted]
    if batch_size == 1:  # a row a batch: what was done is kept to the last bit, and no row is computed twice
        assert scores == wanted
        assert before.shapes + after.shapes == through.shapes
    finished = work(batch_size)
    none = Seen(finished.subject.model)
    assert finished.score(REQUESTS) == scores
    assert none.shapes == []


def test_only_what_is_new_is_scored(work: Callable[..., Work]) -> None:
    first = work().score(REQUESTS[:7])
    more = work()
    seen = Seen(more.subject.model)
    scores = more.score([*REQUESTS[3:8], REQUESTS[3]])
    assert [scores[number] for number in (0, 1, 2, 3, 5)] == [*first[3:7], first[3]]
    assert seen.shapes == [(1, 11)]  # the one request that was new


def test_the_context_is_part_of_what_was_asked(work: Callable[..., Work]) -> None:
    one = work()
    full, short = one.score(REQUESTS[:3]), one.score(REQUESTS[:3], context=4)
    assert sums(full) != pytest.approx(sums(short), abs=1e-3)
    assert (work().score(REQUESTS[:3]), work().score(REQUESTS[:3], context=4)) == (full, short)


def test_of_other_settings_nothing_is_used(work: Callable[..., Work]) -> None:
    work().score(REQUESTS[:3])
    other = work(seed=1)
    seen = Seen(other.subject.model)
    other.score(REQUESTS[:3])
    assert seen.shapes


def test_generation_goes_on_where_it_was(work: Callable[..., Work]) -> None:
    prompts = [[*range(length)] for length in (3, 3, 9, 5, 7)]
    wanted = work(2, "undisturbed").generate(prompts, 4, stop=[1])
    first = work(2)
    before = Seen(first.subject.model, stop_after=5)  # within the second batch: longest prompts come first
    with pytest.raises(KeyboardInterrupt):
        first.generate(prompts, 4, stop=[1])
    assert before.shapes[0] == (2, 9)
    again = work(2)
    after = Seen(again.subject.model)
    assert again.generate(prompts, 4, stop=[1]) == wanted
    assert after.shapes[0] == (2, 5)
    assert again.generate(prompts, 4, stop=[1], label="another") == wanted
    assert len(after.shapes) > 8
