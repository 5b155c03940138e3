from __future__ import annotations

import numpy as np
import pytest
import torch

from ssa.errors import UserError
from ssa.text.token_blocks import EvaluationBatches, TrainingBatches, visible_in_documents
from ssa.text.token_cache import TokenSplit
from ssa.text.tokenization import Tokenizer, train_bpe

TOKENIZER = Tokenizer("bpe-300", train_bpe(iter(["some text " * 99]), 300))


def split_of(n_tokens: int) -> TokenSplit:
    """Token i is i."""
    return TokenSplit("train", np.arange(n_tokens, dtype=np.uint16), 1, 1, 1, TOKENIZER)


def samples(batches: TrainingBatches, n: int) -> list[list[int]]:
    """The first ``n`` samples' inputs, in order."""
    size = batches.batch_size
    rows = [row for k in range(-(-n // size)) for row in batches.micro_batch(k, size)[0].tolist()]
    return rows[:n]


def test_a_batch_is_blocks_and_the_tokens_after() -> None:
    batches = TrainingBatches(split_of(101), block_size=10, batch_size=4, seed=0)
    inputs, targets, first_sample, _ = batches.micro_batch(3, 4)
    assert first_sample == 12
    assert inputs.shape == targets.shape == (4, 10)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(10))
    assert set((inputs[:, 0] % 10).tolist()) == {0}


def test_every_block_once_an_epoch_in_another_order() -> None:
    rows = samples(TrainingBatches(split_of(105), block_size=10, batch_size=4, seed=0), 30)
    epochs = [[row[0] // 10 for row in rows[start : start + 10]] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_order_depends_on_seed_and_sample_alone() -> None:
    split = split_of(203)
    orders = [samples(TrainingBatches(split, 10, batch_size, seed=5), 60) for batch_size in (1, 4, 7, 30)]
    assert all(order == orders[0] for order in orders)
    assert samples(TrainingBatches(split, 10, 4, seed=6), 60) != orders[0]


def test_a_batch_does_not_depend_on_earlier_reads() -> None:
    split = split_of(203)
    fresh = TrainingBatches(split, 10, 4, seed=1).micro_batch(40, 4)
    used = TrainingBatches(split, 10, 4, seed=1)
    for k in (0, 99, 7, 40):
        again = used.micro_batch(k, 4)
    assert used.micro_batch(40, 4)[0].equal(fresh[0])
    assert not again[0].equal(used.micro_batch(41, 4)[0])


def test_noise_replaces_the_stated_share_of_inputs_and_no_target() -> None:
    split = split_of(280)
    seen, changed = set(), 0
    for seed in range(200):
        inputs, targets, *_ = TrainingBatches(split, 90, 3, seed, noise=0.25).micro_batch(0, 3)
        clean, clean_targets, *_ = TrainingBatches(split, 90, 3, seed).micro_batch(0, 3)
        assert targets.equal(clean_targets)
        others = inputs[inputs != clean]
        changed += len(others)
        seen |= set(others.tolist())
    end, entries = TOKENIZER.end_of_text, TOKENIZER.vocab_size
    assert changed / (200 * 3 * 90) == pytest.approx(0.25, abs=0.01)
    assert seen == set(range(entries)) - {end}, "uniform over all tokens but end-of-text"


@pytest.mark.parametrize("size", [1, 3])
def test_noise_leaves_targets_of_any_batch(size: int) -> None:
    split = split_of(100)
    noisy, clean = (TrainingBatches(split, 90, size, 0, noise) for noise in (0.5, 0.0))
    assert noisy.micro_batch(0, size)[1].equal(clean.micro_batch(0, size)[1])
    noisy_windows, clean_windows = ([*EvaluationBatches(split, 30, size, noise)] for noise in (0.5, 0.0))
    for (inputs, targets), (clean_inputs, clean_targets) in zip(noisy_windows, clean_windows, strict=True):
        assert targets.equal(clean_targets)
        assert not inputs.equal(clean_inputs)


def test_noise_leaves_end_of_text() -> None:
    tokens = np.full(101, TOKENIZER.end_of_text, dtype=np.uint16)
    split = TokenSplit("train", tokens, 1, 1, 1, TOKENIZER)
    inputs = TrainingBatches(split, 10, 4, 0, noise=0.9).micro_batch(0, 4).inputs
    assert inputs.unique().tolist() == [TOKENIZER.end_of_text]


def test_noise_depends_on_seed_and_sample_alone() -> None:
    split = split_of(203)
    read = [samples(TrainingBatches(split, 10, size, 5, noise=0.5), 60) for size in (1, 4, 7, 30)]
    assert all(rows == read[0] for rows in read)
    assert samples(TrainingBatches(split, 10, 4, 6, noise=0.5), 60) != read[0]
    blocks = [row[0] for row in samples(TrainingBatches(split, 10, 4, 5), 40)]
    again = {block: 20 + blocks[20:].index(block) for block in blocks[:20]}
    assert all(read[0][number] != read[0][again[block]] for number, block in enumerate(blocks[:20])), "epochs differ"


def test_noise_of_evaluation_is_the_same_in_all_runs() -> None:
    split = split_of(203)
    one, other = ([row for inputs, _ in EvaluationBatches(split, 10, size, 0.5) for row in inputs] for size in (1, 7))
    assert all(map(torch.equal, one, other))
    clean = [row for inputs, _ in EvaluationBatches(split, 10, 1) for row in inputs]
    assert not any(map(torch.equal, one[:-1], clean))


def test_micro_batches_make_up_the_batch() -> None:
    batches = TrainingBatches(split_of(203), block_size=10, batch_size=6, seed=2)
    for part in (0, 1):
        whole = batches.micro_batch(5, 6)[part]
        assert torch.equal(torch.cat([batches.micro_batch(5 * 3 + m, 2)[part] for m in range(3)]), whole)


def test_first_batches_of_a_seed_stay_what_they_are() -> None:
    batches = TrainingBatches(split_of(81), block_size=10, batch_size=4, seed=0)
    assert [batches.block_of(sample) for sample in range(16)] == [2, 4, 3, 6, 5, 0, 1, 7, 1, 3, 7, 6, 0, 4, 2, 5]


def test_a_split_shorter_than_a_block() -> None:
    with pytest.raises(UserError, match="train split has 10 tokens, a block needs 11; add text or"):
        TrainingBatches(split_of(10), block_size=10, batch_size=1, seed=0)
    assert TrainingBatches(split_of(11), block_size=10, batch_size=2, seed=0).n_blocks == 1


@pytest.mark.parametrize("n_tokens", [2, 9, 10, 11, 12, 40, 41, 42, 95])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_evaluation_predicts_every_token_but_the_first_once(n_tokens: int, batch_size: int) -> None:
    windows = list(EvaluationBatches(split_of(n_tokens), 10, batch_size))
    assert torch.cat([targets.flatten() for _, targets in windows]).tolist() == list(range(1, n_tokens))
    assert torch.cat([inputs.flatten() for inputs, _ in windows]).tolist() == list(range(n_tokens - 1))
    assert all(inputs.shape[1] == 10 and len(inputs) <= batch_size for inputs, _ in windows[:-1])
    assert all(inputs.dtype == torch.int64 for inputs, _ in windows)


def test_visible_keys_restart_at_each_document() -> None:
    ids = torch.tensor([[0, 5, 6, 0, 7, 0, 8, 9], [5, 6, 0, 7, 7, 7, 7, 0]])
    assert visible_in_documents(ids, end_of_text=0).tolist() == [[1, 2, 3, 1, 2, 1, 2, 3], [1, 2, 1, 2, 3, 4, 5, 1]]


def test_token_counts_are_of_the_whole_split() -> None:
    split = TokenSplit("train", np.array([3, 1, 3, 3, 0], dtype=np.uint16), 1, 1, 1, TOKENIZER)
    assert split.token_counts(6).tolist() == [1, 1, 0, 3, 0, 0]
