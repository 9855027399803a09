import pytest

from modeling_prlstm.schedule import TRACED_LEVELS, block_index, block_levels, num_levels


def test_seven_is_four_two_one():
    assert block_levels(7) == (2, 1, 0)
    assert [block_index(7, level) for level in block_levels(7)] == [0, 2, 6]


@pytest.mark.parametrize("length", [*range(1, 300), 2**17 - 1, 2**17, 2**17 + 1])
def test_blocks_cover_the_prefix_in_order(length):
    levels = block_levels(length)
    assert levels[0] == num_levels(length)
    position = 0
    for level in levels:
        assert block_index(length, level) * 2**level == position
        position += 2**level
    assert position == length


def test_traced_levels_reach_the_longest_documented_length():
    assert num_levels(131_072) <= TRACED_LEVELS
