"""The series of the target loss: means, noise of a change, and what counts as a rise."""

import math
import statistics

import pytest

from hf_gist.functional.target_losses import START, TargetLoss, TargetSeries, after_passes, difference, rose


def point(losses, step=0, event=START, passes=None):
    return TargetLoss(step, event, passes, tuple(losses))


@pytest.mark.parametrize(
    "before, after",
    [([1.0, 2.0, 3.0], [1.5, 1.5, 3.5]), ([0.1] * 4, [0.2, 0.1, 0.4, 0.0]), ([5.0, 1.0], [4.0, 3.0])],
)
def test_the_noise_is_that_of_the_rows_differences(before, after):
    change, error = difference(point(before), point(after))
    apart = [b - a for a, b in zip(before, after, strict=True)]
    assert change == pytest.approx(statistics.mean(apart))
    assert error == pytest.approx(statistics.stdev(apart) / math.sqrt(len(apart)))


@pytest.mark.parametrize(
    "before, after, expected",
    [
        ([1.0] * 8, [1.2] * 8, True),  # no noise
        ([1.0, 9.0] * 4, [1.2, 9.2] * 4, True),  # rows of different losses that all rise
        ([1.0] * 8, [1.6, 0.5] * 4, False),  # half of them rise, half of them fall
        ([1.0] * 8, [1.0005] * 8, False),  # below a thousandth
        ([1.0] * 8, [0.9] * 8, False),
        ([1.0], [1.1], True),  # of one row, every rise counts
        ([1.0], [1.0], False),
        ([1.0] * 3, [1.0, math.nan, 1.0], True),  # the loss of a row is lost
        ([1.0] * 3, [1.0, math.inf, 1.0], True),
        ([math.inf] * 3, [math.inf] * 3, False),
        ([math.inf] * 3, [1.0] * 3, False),
    ],
)
def test_a_rise_is_larger_than_its_noise(before, after, expected):
    assert rose(point(before), point(after)) is expected


def test_series_in_a_file_and_in_the_manifest():
    points = [point([1.0, 3.0, 0.1 + 0.2]), point([2.0, math.inf, 1.0], 7, after_passes(2.0), 2.0)]
    series = TargetSeries([4, 6, 7], ["b", "a", "b"], True, points)
    again = TargetSeries.from_dict(series.to_dict())
    assert again == series
    assert again.up_to(6).points == points[:1] and again.up_to(7) == series
    found = series.summary()["points"]
    assert found[0]["groups"] == {"a": 3.0, "b": pytest.approx(0.65)}
    assert found[1]["loss"] is None and found[1]["change"] is None and found[1]["groups"] == {"a": None, "b": 1.5}
    assert (found[1]["event"], found[1]["rows"]) == ("after pass 2", 3)
    assert after_passes(1.5) == "after 1.5 passes"
