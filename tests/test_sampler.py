"""The sampler's order is a function of seed and epoch; layout, resume and workers do not change it."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from torch.utils.data import DataLoader

from qwenvl_agent.data.sampler import RowSampler


def take_steps(
    num_steps: int, num_rows: int = 10, *, start_step: int = 0, world_size: int = 1, **settings
) -> list[list]:
    """The rows of each optimizer step, all ranks together, sorted."""
    accumulation = settings.setdefault("accumulation", 1)
    steps = [[] for _ in range(num_steps)]
    for rank in range(world_size):
        sampler = RowSampler(num_rows, rank=rank, world_size=world_size, start_step=start_step, **settings)
        for i, micro_batch in enumerate(islice(sampler, num_steps * accumulation)):
            assert len(micro_batch) == settings["batch_size"]
            steps[i // accumulation] += micro_batch
    return [sorted(step) for step in steps]


def test_epoch_covers_each_row_once_and_order_changes():
    sampler = RowSampler(10, batch_size=1)
    epochs = [sampler.epoch_rows(epoch).tolist() for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_order_is_fixed_by_seed_and_epoch():
    # Exact: a checkpoint of an older version resumes with the same rows.
    assert RowSampler(8, batch_size=1, seed=3).epoch_rows(0).tolist() == [0, 6, 2, 1, 3, 7, 4, 5]
    assert RowSampler(8, batch_size=1, seed=3).epoch_rows(5).tolist() == [3, 6, 2, 4, 0, 7, 1, 5]


@pytest.mark.parametrize("lengths", [None, [5, 3, 9, 1, 7, 2, 8, 0, 6, 4]])
@pytest.mark.parametrize("deals", [False, True])
@pytest.mark.parametrize(("batch_size", "accumulation", "world_size"), [(1, 4, 1), (1, 1, 4), (1, 2, 2), (2, 1, 2)])
def test_step_holds_the_same_rows_in_every_layout(batch_size, accumulation, world_size, lengths, deals):
    one = take_steps(9, batch_size=4, seed=1)
    layout = {"batch_size": batch_size, "accumulation": accumulation, "world_size": world_size, "deals": deals}
    assert take_steps(9, seed=1, lengths=lengths, **layout) == one


def test_tail_is_carried_over_and_every_step_is_full():
    steps = take_steps(10, batch_size=4)  # 40 rows of the stream: 4 epochs of 10
    assert [len(step) for step in steps] == [4] * 10
    assert Counter(row for step in steps for row in step) == dict.fromkeys(range(10), 4)


def test_step_may_be_larger_than_an_epoch():
    assert take_steps(1, num_rows=3, batch_size=6) == [[0, 0, 1, 1, 2, 2]]


@pytest.mark.parametrize("start_step", [1, 2, 3, 7])
def test_start_step_continues_the_stream(start_step):
    whole = take_steps(9, batch_size=2, accumulation=2, world_size=2)
    assert (
        take_steps(9 - start_step, start_step=start_step, batch_size=2, accumulation=2, world_size=2)
        == (whole[start_step:])
    )


def test_workers_that_fetch_ahead_do_not_change_order_or_state():
    def fetch(num_workers: int, sampler: RowSampler, num: int) -> list[list[int]]:
        loader = DataLoader(range(10), batch_sampler=sampler, num_workers=num_workers, collate_fn=list)
        return list(islice(loader, num))

    expected = fetch(0, RowSampler(10, batch_size=3), 8)
    sampler = RowSampler(10, batch_size=3)
    assert fetch(2, sampler, 5) == expected[:5]
    sampler.load_state_dict(sampler.state_dict(5))
    assert fetch(2, sampler, 3) == expected[5:]


def test_state_of_other_data_is_refused():
    state = RowSampler(10, batch_size=4).state_dict(3)
    assert state == {"step": 3, "seed": 0, "num_rows": 10, "rows_per_step": 4}
    RowSampler(10, batch_size=2, accumulation=2).load_state_dict(state)
    for other in ({"num_rows": 11}, {"seed": 1}, {"batch_size": 3}):
        with pytest.raises(ValueError, match=f"{next(iter(other)).replace('batch_size', 'rows_per_step')} is"):
            RowSampler(**{"num_rows": 10, "batch_size": 4, **other}).load_state_dict(state)


def test_weights_give_each_row_its_share():
    weights = [3.0] * 10 + [1.0] * 30  # 40 draws an epoch: 2 of each heavy row, 2/3 of each light one
    sampler = RowSampler(40, batch_size=1, weights=weights)
    counts = np.zeros(40)
    for epoch in range(30):
        epoch_counts = np.bincount(sampler.epoch_rows(epoch), minlength=40)
        assert epoch_counts.sum() == 40
        assert set(epoch_counts[:10]) == {2} and set(epoch_counts[10:]) <= {0, 1}
        counts += epoch_counts
    assert counts[:10].tolist() == [60] * 10
    assert abs(counts[10:] - 20).max() <= 2


def test_equal_weights_are_a_plain_permutation():
    plain, weighted = RowSampler(7, batch_size=1), RowSampler(7, batch_size=1, weights=[0.3] * 7)
    assert [plain.epoch_rows(e).tolist() for e in range(4)] == [weighted.epoch_rows(e).tolist() for e in range(4)]


def test_lengths_sort_inside_a_step_and_balance_ranks():
    lengths = [10, 80, 20, 70, 30, 60, 40, 50]
    ranks = [
        next(
            iter(
                [list(islice(RowSampler(8, batch_size=2, accumulation=2, rank=rank, world_size=2, lengths=lengths), 2))]
            )
        )
        for rank in range(2)
    ]
    assert [[[lengths[i] for i in batch] for batch in rank] for rank in ranks] == [
        [[80, 70], [40, 30]],
        [[60, 50], [20, 10]],
    ]


def of_ranks(world_size: int, num: int, lengths: list, **settings) -> list[list[list]]:
    """The lengths of each rank's first `num` micro-batches."""
    samplers = [
        RowSampler(len(lengths), rank=rank, world_size=world_size, lengths=lengths, deals=True, **settings)
        for rank in range(world_size)
    ]
    return [[[lengths[i] for i in batch] for batch in islice(sampler, num)] for sampler in samplers]


def test_rows_that_are_packed_are_dealt_back_and_forth():
    lengths = [10, 80, 20, 70, 30, 60, 40, 50]
    assert of_ranks(2, 2, lengths, batch_size=2, accumulation=2) == [[[80, 50], [40, 10]], [[70, 60], [30, 20]]]
    assert of_ranks(2, 1, lengths[:6], batch_size=3) == [[[80, 30, 20]], [[70, 60, 10]]]
    alone = list(islice(RowSampler(8, batch_size=2, accumulation=2, lengths=lengths, deals=True), 2))
    assert alone == list(islice(RowSampler(8, batch_size=2, accumulation=2, lengths=lengths), 2))


def test_dealt_rows_leave_no_rank_waiting_for_long():
    """A step ends with its slowest rank, whose rows would be the longest of all."""
    lengths = np.random.default_rng(0).normal(1000, 200, 400).tolist()
    steps = np.array(of_ranks(2, 50, lengths, batch_size=4)).sum(-1)  # (rank, step)
    share = (steps.mean(0) / steps.max(0)).mean()
    assert share > 0.97, "of the slowest rank's tokens, that the ranks have on average"


def test_number_of_steps():
    sampler = RowSampler(10, batch_size=2, accumulation=2)
    assert (sampler.num_steps(1), sampler.num_steps(2), sampler.num_steps(0.1)) == (3, 5, 1)
    assert sampler.epoch_of(5) == 2.0


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="0 rows"):
        RowSampler(0, batch_size=1)
