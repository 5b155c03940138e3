"""Missing files and unwritable folders are refused before torch is imported, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from programs import launch

from ssa.command_line.preflight import check_train
from ssa.config import Config
from ssa.errors import UserError
from ssa.files import check_new_folder, check_writable
from ssa.record.environment import Environment
from ssa.record.run_record import RunRecord

REFUSED = {
    "train.py data=text data.train=missing/*.txt": "data.train=missing/*.txt: matches no file",
    "train.py data=text data.train=text.txt data.test=nowhere.txt": "data.test=nowhere.txt: matches no file",
    "train.py data=text data.train=.": "data.train=.: empty.txt is empty",
    "train.py data=text data.train=empty.txt": "data.train=empty.txt: empty.txt is empty",
    "train.py data=text data.train=text.pdf": "text.pdf: unknown suffix",
    "train.py data.tokenizer=nowhere/tokenizer.json": "data.tokenizer=nowhere/tokenizer.json: cannot be read",
    "train.py data.tokenizer=bpe-xx": "data.tokenizer=bpe-xx: bpe-N needs N from 257 to 200000",
    "train.py -m seed=1,2 data=text data.train=text.txt,nowhere.txt": "data.train=nowhere.txt: matches no file",
    "train.py data.tokenizer=./nowhere": "data.tokenizer=./nowhere: no such folder or file",
    "train.py output_dir=text.txt": "cannot be written: ",
    "train.py output_dir=text.txt/below": "cannot be written: ",
    "train.py data.cache_dir=text.txt": "data.cache_dir=",
    "train.py init_from=./nowhere": "init_from=./nowhere: no such folder",
    "train.py resume=nowhere": "nowhere is not a run folder",
    "evaluate.py run=nowhere": "nowhere is not a run folder",
    "evaluate.py init_from=./nowhere": "init_from=./nowhere: no such folder",
    "evaluate.py init_from=gpt2 text=missing/*.txt": "text=missing/*.txt: matches no file (from ",
    "evaluate.py init_from=gpt2 tokenizer=./nowhere": "tokenizer=./nowhere: no such folder or file",
    "evaluate.py init_from=gpt2 tokenizer=nowhere.json": "tokenizer=nowhere.json: cannot be read",
    "evaluate.py init_from=gpt2 output_dir=text.txt": "output_dir=text.txt: cannot be written (Not a directory)",
    "generate.py run=nowhere prompt=x": "nowhere is not a run folder",
    "export.py run=nowhere to=exported": "nowhere is not a run folder",
    "report.py runs=nowhere": "runs=nowhere: no such folder",
    "report.py to=text.txt": "to=text.txt: cannot be written (Not a directory)",
    "-m experiments fig2_norms scale=smoke output_dir=text.txt": "output_dir=text.txt: cannot be written",
    "-m sweeps sweeps/optuna_learning_rate.yaml output_dir=text.txt": "output_dir=text.txt: ",
}


@pytest.mark.parametrize("command", REFUSED)
def test_refused_before_importing_torch(command: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("words")
    (tmp_path / "text.pdf").write_text("words")
    (tmp_path / "empty.txt").write_text("")
    before = sorted(tmp_path.rglob("*"))
    program, *arguments = [str(ROOT / word) if word.endswith(".yaml") else word for word in command.split()]
    code, out, err, heavy = launch(program, *arguments, cwd=tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ")
    assert REFUSED[command] in err
    assert heavy & {"torch", "lightning", "datasets", "wandb", "transformers"} == set()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_finished_run_needs_neither_its_text_nor_a_cache(smoke: Callable[..., Config], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("words " * 10_000)
    config = smoke(f"data.train={text}", "trainer.steps=1", "optim.warmup_steps=0", f"data.cache_dir={tmp_path}/cache")
    check_train(config)
    assert not (tmp_path / "outputs").exists()
    assert not (tmp_path / "cache").exists()
    with RunRecord.open(config) as record:
        record.begin(Environment({}, None))
        record.finish({}, step=1)
    text.unlink()
    (tmp_path / "cache").write_text("not a folder")
    check_train(config)
    again = config.model_copy(update={"rerun": True})
    with pytest.raises(UserError, match=r"data\.train=.*text\.txt: matches no file"):
        check_train(again)
    text.write_text("words")
    with pytest.raises(UserError, match=r"data\.cache_dir=.*cache: cannot be written \(Not a directory\)"):
        check_train(again)


def test_a_run_in_progress_is_refused(smoke: Callable[..., Config]) -> None:
    config = smoke()
    with RunRecord.open(config), pytest.raises(UserError, match="is in use by another process"):
        check_train(config)


def test_unwritable_folders() -> None:
    with pytest.raises(UserError, match=r"^to=x: cannot be written \(File name too long\)$"):
        check_writable(Path("x" * 300), "to=x")
    with pytest.raises(UserError, match=r"^to=x: cannot be written \(Not a directory\)$"):
        check_writable(Path(__file__, "below", "it"), "to=x")


def test_new_folders(tmp_path: Path) -> None:
    check_new_folder(tmp_path / "a" / "b", "to=b")
    (tmp_path / "empty").mkdir()
    check_new_folder(tmp_path / "empty", "to=empty")
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"^to=link: cannot be written \(No such file or directory\)$"):
        check_new_folder(tmp_path / "link", "to=link")
    for used in (tmp_path, Path(__file__)):
        with pytest.raises(UserError, match=r"^to=used: exists; valid: a new folder, or an empty one$"):
            check_new_folder(used, "to=used")


@pytest.mark.parametrize("program", ["train.py trainer.device=cuda", "evaluate.py init_from=gpt2 device=cuda"])
def test_a_missing_device_is_refused_with_torch_alone(program: str, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    code, _, err, heavy = launch(*program.split(), cwd=tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "device=cuda: not available on this machine; valid here: auto, cpu" in err
    assert heavy <= {"torch", "numpy"}
