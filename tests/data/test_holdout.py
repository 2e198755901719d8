"""Target rows held out from a selection."""

from collections import Counter

import pytest

from hf_gist.data.holdout import draw_held_out


@pytest.mark.parametrize("rows", [2, 3, 10, 64, 101])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_a_share_of_the_rows(rows, share):
    wanted = int(share * rows + 0.5)
    if not 0 < wanted < rows:
        change = "Raise it" if wanted == 0 else "Lower it"
        with pytest.raises(
            ValueError, match=f"`target_holdout=.*`target_dataset` has .*{change}, give more target rows"
        ):
            draw_held_out(share, range(rows), None, 0)
        return
    drawn = draw_held_out(share, range(rows), None, 0)
    assert len(drawn) == len(set(drawn)) == wanted and set(drawn) <= set(range(rows))
    assert drawn == draw_held_out(share, range(rows), None, 0)


def test_the_seed_draws():
    assert len({tuple(draw_held_out(0.3, range(50), None, seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize("sizes", [[3] * 27, [1, 1, 10], [2, 2, 2, 2], [50, 1, 7]])
@pytest.mark.parametrize("share", [0.25, 0.4, 0.6])
def test_every_group_gives_its_share_and_keeps_a_row(sizes, share):
    groups = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    drawn = Counter(groups[row] for row in draw_held_out(share, range(len(groups)), groups, 1))
    for number, size in enumerate(sizes):
        assert min(int(share * size), size - 1) <= drawn[f"g{number}"] <= min(int(share * size) + 1, size - 1)
    most = sum(min(int(share * size) + 1, size - 1) for size in sizes)
    assert sum(drawn.values()) == min(int(share * sum(sizes) + 0.5), most)


def test_only_usable_rows_are_drawn():
    usable = [1, 4, 5, 9]
    assert set(draw_held_out(0.5, usable, None, 0)) <= set(usable)


@pytest.mark.parametrize("groups", [["a"], ["a", "b", "c"], None])
def test_groups_of_one_row_hold_out_nothing(groups):
    with pytest.raises(ValueError, match="leaves no row to select with.* one. Give more target rows, or leave it out"):
        draw_held_out(0.9, range(len(groups or [1])), groups, 0)
