"""Tasks of lm-evaluation-harness: the same answers and metrics as its ``hf`` backend, without the internet."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from evaluated_models import TEXTS, write_model_folder
from harness_tasks import BEGIN, BETTER, END, TASKS, write_hf_model, write_tasks

from ssa.errors import UserError
from ssa.evaluation.catalog import GROUPS, OURS, names
from ssa.evaluation.scoring.context import EvaluationContext, Journal
from ssa.evaluation.scoring.evaluated_model import EvaluatedModel
from ssa.evaluation.settings import EvaluateSettings
from ssa.evaluation.tasks import harness
from ssa.evaluation.tasks.harness import HarnessTask

pytest.importorskip("lm_eval")
pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from ssa.evaluation.tasks.harness_model import HarnessModel
from ssa.progress import ProgressBar

INDEX = harness.task_manager


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A task index of local tasks."""
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture(autouse=True)
def local_tasks(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "task_manager", lambda all_tasks: manager)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / str(request.param)
    write_hf_model(path, request.param)
    return path


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """The ``hf`` backend of the harness."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=3)


@pytest.fixture
def context(folder: Path, tmp_path: Path) -> EvaluationContext:
    evaluated = EvaluatedModel(init_from=str(folder), device="cpu")
    return EvaluationContext(evaluated, tmp_path, Journal(tmp_path, "journal", {}), ProgressBar("test"))


def settings(**values: Any) -> EvaluateSettings:
    return EvaluateSettings(init_from="x", **values)


def task(name: str, **values: Any) -> HarnessTask:
    return HarnessTask(name, settings(**values), (*OURS, *GROUPS))


def flat(answers: Any) -> Iterator[Any]:
    for answer in answers:
        yield from flat(answer) if isinstance(answer, list | tuple) else [answer]


def results_of(theirs: Any, manager: Any, name: str, **values: Any) -> Any:
    found = manager.load([name])
    for one in found["tasks"].values():
        one.set_fewshot_seed(seed=1234)
    return evaluate(theirs, found, bootstrap_iters=1000, log_samples=True, **values)


@pytest.mark.parametrize("name", TASKS)
def test_task_matches_hf_backend(name: str, context: EvaluationContext, theirs: Any, manager: Any) -> None:
    ours = task(name).run(context)
    wanted = results_of(theirs, manager, name)
    answers = [list(flat(answer)) for _, answer in ours.details["samples"][name]]
    assert [number for number, _ in ours.details["samples"][name]] == list(range(9))
    for answer, sample in zip(answers, wanted["samples"][name], strict=True):
        for one, other in zip(answer, flat(sample["filtered_resps"]), strict=True):
            assert one == (pytest.approx(other, abs=1e-3) if isinstance(other, float) else other)
    assert set(ours.metrics) == {metric["metric"] for metric in TASKS[name]["metric_list"]}
    for metric, found in ours.metrics.items():
        assert found.value == pytest.approx(wanted["results"][name][f"{metric},none"], rel=1e-4)
        assert found.higher_is_better is BETTER.get(metric, False)
        stderr = wanted["results"][name][f"{metric}_stderr,none"]
        assert found.stderr == (pytest.approx(stderr, rel=1e-3) if isinstance(stderr, float) else None)
    assert (ours.n, ours.versions) == (9, {"tasks": {name: 3}})


def instances(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def test_loglikelihood_matches_hf_backend(context: EvaluationContext, theirs: Any) -> None:
    pairs = [
        ("", "The word"),
        ("", " a"),
        ("It ends in a space ", "and continues"),
        ("two spaces  ", " and continues"),
        ("One word an", "other: the tokens of the whole are cut"),
        (TEXTS[0][:1500], " beyond all positions"),
        (TEXTS[0][:1500], TEXTS[1][:120]),
        ("émigré — naïve", " ☃ snow\n\nman"),
        (f"{BEGIN} begun twice", " as some templates do"),
        (f"{BEGIN}", " alone"),
        (f"within {BEGIN}", f" and {END} after"),
    ]
    requests = instances("loglikelihood", *pairs)
    ours, wanted = HarnessModel(context).loglikelihood(requests), theirs.loglikelihood(requests)
    assert {pair: answer[0] for pair, answer in zip(pairs, ours, strict=True)} == pytest.approx(
        {pair: answer[0] for pair, answer in zip(pairs, wanted, strict=True)}, abs=1e-3
    )
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in wanted]


def test_rolling_loglikelihood_matches_hf_backend(context: EvaluationContext, theirs: Any) -> None:
    requests = instances("loglikelihood_rolling", *((TEXTS[2][: 97 * number],) for number in range(12)), ("a",))
    ours, wanted = HarnessModel(context).loglikelihood_rolling(requests), theirs.loglikelihood_rolling(requests)
    assert ours == pytest.approx(wanted, abs=1e-2, rel=1e-5)


def test_generated_text_is_greedy(context: EvaluationContext, theirs: Any) -> None:
    """Generated text is greedy: the only way to get a greedy answer from a random model."""
    model = HarnessModel(context)
    contexts = [text[:length] for length in (20, 40, 60, 80) for text in TEXTS[:6]]  # few answers survive tokenization
    settings = {"until": [], "max_gen_toks": 2}
    texts = model.generate_until(instances("generate_until", *((context, settings) for context in contexts)))
    requests = instances("loglikelihood", *zip(contexts, texts, strict=True))
    ours = [greedy for _, greedy in model.loglikelihood([one for one in requests if one.args[1].strip()])]
    assert ours == [greedy for _, greedy in theirs.loglikelihood([one for one in requests if one.args[1].strip()])]
    assert any(ours)


def test_generation_matches_hf_backend(context: EvaluationContext, theirs: Any) -> None:
    contexts = [TEXTS[number][: 13 * number * number + 1] for number in range(12)]  # up to beyond all positions
    many: dict[str, Any] = {"until": ["\n\n", "zz"], "max_gen_toks": 60, "do_sample": False}
    few = {"until": "e", "max_gen_toks": 7, "temperature": 0.0}
    other = {**many, "until": ["i"]}
    requests = instances("generate_until", *((context, s) for context in contexts for s in (many, few, other)))
    ours, wanted = HarnessModel(context).generate_until(requests), theirs.generate_until(requests)
    assert ours == wanted
    assert len(set(ours)) > 10
    assert all("e" not in text for text in ours[1::3])


def test_white_space_contexts(context: EvaluationContext) -> None:
    """A white-space context is prepended to the answer; an answer without tokens of its own is an error."""
    model = HarnessModel(context)
    white, empty = model.loglikelihood(instances("loglikelihood", (" ", "x"), ("", " x")))
    assert white == pytest.approx(empty)
    with pytest.raises(UserError, match="tokenizer: 'ng' has no tokens of its own after ' it is a thi'"):
        model.loglikelihood(instances("loglikelihood", (" it is a thi", "ng")))


@pytest.fixture
def small_context(tmp_path: Path) -> EvaluationContext:
    """A context with an arbitrary model."""
    evaluated = EvaluatedModel(init_from=str(write_model_folder(tmp_path / "model", "llama")), device="cpu")
    return EvaluationContext(evaluated, tmp_path, Journal(tmp_path, "journal", {}), ProgressBar("test"))


def test_group_metrics(small_context: EvaluationContext) -> None:
    found = task("tiny").run(small_context)
    assert (found.n, set(found.details["samples"])) == (18, {"tiny_choice", "tiny_few_shot"})
    assert set(found.metrics) == {"tiny_choice/acc", "tiny_choice/acc_norm", "tiny_few_shot/acc"}
    alone = task("tiny_choice").run(small_context)
    assert alone.metrics["acc_norm"] == found.metrics["tiny_choice/acc_norm"]


def test_limit_and_num_fewshot(small_context: EvaluationContext) -> None:
    def answers(name: str, **values: Any) -> Any:
        return task(name, **values).run(small_context).details["samples"][name]

    whole = answers("tiny_few_shot")
    assert answers("tiny_few_shot", limit=3) == whole[:3]
    assert answers("tiny_few_shot", num_fewshot=2) == whole
    assert answers("tiny_few_shot", num_fewshot=0) != whole
    assert answers("tiny_choice", num_fewshot=0) == answers("tiny_choice") != answers("tiny_choice", num_fewshot=1)
    assert task("tiny_choice").settings != task("tiny_choice", num_fewshot=0).settings


CLOSEST = {"tiny_choise": "tiny_choice", "lenght": "length", "winograde": "winogrande", "papers": "paper"}


@pytest.mark.parametrize(("name", "near"), CLOSEST.items())
def test_suggests_closest_name(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"tasks={name}: no such task, did you mean {near}\\?; valid: perplexity, "):
        task(name)


@pytest.mark.parametrize("name", ["", "x", "tiny_choice.yaml", "tiny_*", "tiny_choice|tiny_text", "a b"])
def test_refuses_patterns_files_and_lists(name: str) -> None:
    with pytest.raises(UserError, match=r"no such task(, did you mean \w+\?)?; valid: "):
        task(name)


def test_paper_columns_are_harness_tasks() -> None:
    assert names(["paper", "length", "paper"]) == [*harness.PAPER, "length"]
    known = INDEX(all_tasks=False).task_index
    assert [name for name in harness.PAPER if name not in known] == []


def test_unavailable_data(small_context: EvaluationContext, monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in ("huggingface_hub.constants.HF_HUB_OFFLINE", "datasets.config.HF_HUB_OFFLINE"):
        monkeypatch.setattr(setting, True)
    with pytest.raises(UserError) as error:
        task("tiny_missing").run(small_context)
    assert str(error.value).startswith("tasks=tiny_missing: data unavailable (")
    assert "nobody/nothing" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_unreachable_hub(small_context: EvaluationContext, tmp_path: Path) -> None:
    """Other tasks still run."""
    (tmp_path / "text.txt").write_text(TEXTS[0])
    arguments = [f"init_from={tmp_path / 'model'}", "tasks=piqa,perplexity", f"text={tmp_path / 'text.txt'}"]
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, str(ROOT / "evaluate.py"), *arguments, f"output_dir={tmp_path}"]
    done = subprocess.run(command, env={**os.environ, **nowhere}, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: tasks: 1 of 2 failed: piqa\n")
    assert done.stdout.count("error: ") == 1
    assert "error: tasks=piqa: data unavailable (" in done.stdout
    assert list(tmp_path.glob("pretrained/model-*/evaluation/perplexity.json"))


def test_unsupported_generation(small_context: EvaluationContext) -> None:
    model = HarnessModel(small_context)
    with pytest.raises(UserError, match=r"sampling is not supported; valid: do_sample=false"):
        model.generate_until(
            instances("generate_until", ("a", {"until": ["b"], "do_sample": True, "temperature": 0.7}))
        )
    with pytest.raises(UserError, match="context=64: no room for 64 generated tokens"):
        model.generate_until(instances("generate_until", ("a", {"until": ["b"], "max_gen_toks": 64})))


@pytest.mark.slow
def test_full_task_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "task_manager", INDEX)
    assert task("boolq").name == "boolq"
    with pytest.raises(
        UserError, match=r"tasks=boolqq: no such task, did you mean boolq\?; valid: .* one of the \d+,\d"
    ):
        task("boolqq")
