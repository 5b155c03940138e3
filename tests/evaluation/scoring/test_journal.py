"""Journal: answers survive a kill at any byte and are not computed again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from evaluated_models import EVERYTHING, Seen, evaluated_model, sums, write_model_folder
from full_disk import fill_disk

from ssa.errors import UserError
from ssa.evaluation.scoring.context import EvaluationContext, Journal
from ssa.evaluation.scoring.scoring import Request
from ssa.progress import ProgressBar

OF = {"settings": {"text": "test", "é": None}, "model": {"context": 64}}
ANSWERS = {f"question {number}": [[-0.1 * number, -3.25], number % 2 == 0] for number in range(4)}


def opened(folder: Path, of: object = OF) -> Journal:
    return Journal(folder, "task", of)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with all answers."""
    journal = opened(tmp_path / "evaluation")
    for request, answer in ANSWERS.items():
        journal.add([(request, answer)])
    return journal.path


def known(path: Path, of: object = OF) -> dict[str, object]:
    journal = opened(path.parent, of)
    return {request: journal.get(request) for request in ANSWERS if journal.get(request) is not None}


def test_answers_round_trip(path: Path) -> None:
    assert known(path) == ANSWERS
    assert known(path, dict(reversed(OF.items()))) == ANSWERS
    assert opened(path.parent).get("another") is None


def test_unfinished_files_are_marked_until_the_outcome_is_saved(path: Path) -> None:
    folder = path.parent
    assert not Journal.has_unfinished_files(folder, "task")
    with Journal.exclusive(folder, "task", OF, of_all=True) as journal:
        journal.begin_files()
    assert Journal.has_unfinished_files(folder, "task")
    with Journal.exclusive(folder, "task", OF, of_all=True) as journal:
        with pytest.raises(UserError, match="already running"), Journal.exclusive(folder, "task", {}, of_all=True):
            pass
        journal.remove()
    assert not Journal.has_unfinished_files(folder, "task")


def test_survives_a_kill_at_any_byte(path: Path) -> None:
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        lines = whole[:end].count(b"\n")
        assert known(path) == dict(list(ANSWERS.items())[:lines]), end
        opened(path.parent).add(list(ANSWERS.items())[lines:])
        assert path.read_bytes() == whole, end


def test_a_full_disk_leaves_no_part_of_an_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, journal = path.read_bytes(), opened(path.parent)
    for room in range(60):
        with monkeypatch.context() as patch:
            fill_disk(patch, path.name, room)
            with pytest.raises(OSError, match="No space left on device"):
                journal.add([("another", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])])
        assert path.read_bytes() == whole


@pytest.mark.parametrize("other", [{}, {**OF, "settings": {"text": "validation"}}, {**OF, "more": 1}])
def test_one_journal_per_identity(path: Path, other: dict[str, object]) -> None:
    assert known(path, other) == {}
    opened(path.parent, other).add([("question 0", 7)])
    assert known(path, other) == {"question 0": 7}
    assert known(path) == ANSWERS


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "no UTF-8": lambda line: b"\xff" + line,
    "no JSON": lambda line: line[:-1],
    "zeros": lambda line: bytes(len(line)),
    "a number": lambda line: b"5",
    "one part": lambda line: b"[1]",
    "three parts": lambda line: b"[1, 2, 3]",
    "a key that is a list": lambda line: b"[[1], 2]",
    "nothing": lambda line: b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_skips_damaged_lines(damage: str, path: Path) -> None:
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], DAMAGE[damage](lines[1]), *lines[2:]]))
    assert known(path) == {request: answer for request, answer in ANSWERS.items() if request != "question 1"}
    opened(path.parent).add([("question 1", ANSWERS["question 1"])])
    assert known(path) == ANSWERS


def test_remove(path: Path) -> None:
    journal = opened(path.parent)
    journal.remove()
    journal.remove()
    assert list(path.parent.iterdir()) == []


def test_exclusive(path: Path) -> None:
    def alone(of: object = OF) -> AbstractContextManager[Journal]:
        return Journal.exclusive(path.parent, "task", of)

    with alone() as journal:
        assert journal.get("question 1") == ANSWERS["question 1"]
        with pytest.raises(UserError, match="task task is already running in another process"), alone():
            pass
        with alone("something else") as other:
            assert other.get("question 1") is None
    with pytest.raises(KeyboardInterrupt), alone():
        raise KeyboardInterrupt
    with alone() as journal:
        journal.remove()
    assert list(path.parent.iterdir()) == []


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("evaluated") / "model", "llama", EVERYTHING)


@pytest.fixture
def context(model_folder: Path, tmp_path: Path) -> Callable[..., EvaluationContext]:
    """A function that reopens the task, like a new process."""

    def make(batch_size: int | None = None, journal: str = "a", **of: object) -> EvaluationContext:
        answers = Journal(tmp_path, journal, {"task": "t", **of})
        return EvaluationContext(evaluated_model(model_folder), tmp_path, answers, ProgressBar("t"), batch_size)

    return make


REQUESTS = [Request([start, 1, *range(start, start + 8)], [start, answer]) for start in range(9) for answer in range(3)]


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_scoring_resumes(context: Callable[..., EvaluationContext], batch_size: int | None) -> None:
    undisturbed = context(batch_size, "undisturbed")
    through = Seen(undisturbed.evaluated.model)
    wanted = undisturbed.score(REQUESTS)
    first = context(batch_size)
    before = Seen(first.evaluated.model, stop_after=len(through.shapes) - 1)
    with pytest.raises(KeyboardInterrupt):
        first.score(REQUESTS)
    again = context(batch_size)
    after = Seen(again.evaluated.model)
    scores = again.score(REQUESTS)
    assert scores == wanted, "bit for bit"
    if batch_size == 1:  # no prefix is shared, and no row is computed twice
        assert before.shapes + after.shapes == through.shapes
    finished = context(batch_size)
    none = Seen(finished.evaluated.model)
    assert finished.score(REQUESTS) == scores
    assert none.shapes == []


def test_scores_only_new_requests(context: Callable[..., EvaluationContext]) -> None:
    first = context(1).score(REQUESTS[:7])
    more = context(1)
    seen = Seen(more.evaluated.model)
    scores = more.score([*REQUESTS[3:8], REQUESTS[3]])
    assert [scores[number] for number in (0, 1, 2, 3, 5)] == [*first[3:7], first[3]]
    assert seen.shapes == [(1, 11)]  # the only new request


def test_max_length_is_part_of_a_request(context: Callable[..., EvaluationContext]) -> None:
    one = context()
    full, short = one.score(REQUESTS[:3]), one.score(REQUESTS[:3], max_length=4)
    assert sums(full) != pytest.approx(sums(short), abs=1e-3)
    assert (context().score(REQUESTS[:3]), context().score(REQUESTS[:3], max_length=4)) == (full, short)


def test_other_identity_shares_no_answers(context: Callable[..., EvaluationContext]) -> None:
    context().score(REQUESTS[:3])
    other = context(seed=1)
    seen = Seen(other.evaluated.model)
    other.score(REQUESTS[:3])
    assert seen.shapes


def test_generation_resumes(context: Callable[..., EvaluationContext]) -> None:
    prompts = [[*range(length)] for length in (3, 3, 9, 5, 7)]
    wanted = context(2, "undisturbed").generate(prompts, 4, stop=[1])
    first = context(2)
    before = Seen(first.evaluated.model, stop_after=5)  # within the second batch: longest prompts come first
    with pytest.raises(KeyboardInterrupt):
        first.generate(prompts, 4, stop=[1])
    assert before.shapes[0] == (2, 9)
    again = context(2)
    after = Seen(again.evaluated.model)
    assert again.generate(prompts, 4, stop=[1]) == wanted
    assert after.shapes[0] == (2, 5)
    assert again.generate(prompts, 4, stop=[1], label="another") == wanted
    assert len(after.shapes) > 8
