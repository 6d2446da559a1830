"""The feature queue takes any length and any batch."""

import pytest
import torch

from aurora_ds.errors import AuroraError
from aurora_ds.tasks.feature_queue import EMPTY, FeatureQueue


def rows(start, count):
    values = torch.arange(start, start + count).float()
    return values[:, None].repeat(1, 2), -values[:, None].repeat(1, 2), torch.arange(start, start + count)


@pytest.mark.parametrize(
    ("length", "batches"), [(7, [3, 3, 3, 3]), (4, [4, 4]), (5, [12]), (3, [2, 9, 1]), (6, [1] * 20)]
)
def test_the_last_rows_written_are_held(length, batches):
    queue, start = FeatureQueue(2, length, seed=0), 0
    for count in batches:
        queue.write(*rows(start, count))
        start += count
    expected = set(range(max(0, start - length), start))
    assert set(queue.ids.tolist()) - {EMPTY} == expected
    for place, number in enumerate(queue.ids.tolist()):
        if number != EMPTY:
            assert queue.image[0, place] == number and queue.text[0, place] == -number


def test_a_full_turn_keeps_places_in_order_of_writing():
    queue = FeatureQueue(2, 6, seed=0)
    for start in range(0, 9, 3):
        queue.write(*rows(start, 3))
    assert queue.ids.tolist() == [6, 7, 8, 3, 4, 5]
    assert queue.pointer == 3


def test_length_zero_is_no_queue():
    queue = FeatureQueue(2, 0, seed=0)
    queue.write(*rows(0, 4))
    assert queue.image.shape == (2, 0) and queue.pointer == 0


def test_a_stored_queue_of_another_length_is_refused_with_the_setting_to_change():
    with pytest.raises(AuroraError, match="retrieval.queue_size=5"):
        FeatureQueue(2, 7, seed=0).load(FeatureQueue(2, 5, seed=0).state())


def test_state_round_trip():
    queue = FeatureQueue(2, 7, seed=0)
    queue.write(*rows(0, 3))
    other = FeatureQueue(2, 7, seed=1)
    other.load(queue.state())
    assert torch.equal(other.image, queue.image) and torch.equal(other.ids, queue.ids) and other.pointer == 3
