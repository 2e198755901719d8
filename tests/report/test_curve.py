"""Names at the points of a curve never overlap, and the first and the last are written."""

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure

from hf_gist.report.canvas import STYLE
from hf_gist.report.draw import Curve


LOSSES = {
    "flat end": [5.14, 2.8, 1.5, 1.31, 1.25, 1.247],
    "rising": [1.0, 1.2, 2.0, 4.0, 9.0],
    "flat": [1.0] * 8,
    "two": [2.0, 1.0],
    "one": [2.0],
    "not finite": [4.0, 2.0, float("nan"), 1.0, 1.0],
    "many": list(np.linspace(5, 1, 40)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_names_of_points_do_not_overlap(name):
    losses = np.array(LOSSES[name])
    events = ["before the first step", "after the warm-up", *(f"after pass {at}" for at in range(1, len(losses)))]
    with rc_context(STYLE):
        figure = Figure(figsize=(4.8, 3.0), layout="constrained")
        Curve(np.arange(len(losses)) * 15, losses, events[: len(losses)], "optimizer steps", "mean loss")(figure)
        figure.draw_without_rendering()
        texts = figure.axes[0].texts
        boxes = [text.get_window_extent() for text in texts]
    finite = [event for event, loss in zip(events, losses, strict=False) if np.isfinite(loss)]
    shown = [text.get_text() for text in texts]
    assert finite[-1] in shown and finite[0] in shown
    assert not any(a.overlaps(b) for at, a in enumerate(boxes) for b in boxes[:at])
