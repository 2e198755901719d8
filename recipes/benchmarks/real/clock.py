"""The time limit."""

import time
from contextlib import contextmanager


class Clock:
    """The time limit, and the seconds that each kind of work took per unit when it was last done.

    Args:
        end (`float`): time limit, in seconds of `time.time()`: all processes have the same.
    """

    def __init__(self, end):
        self.end = end
        self.rates = {}

    def learn(self, kind, seconds, units):
        """Remember what a kind of work took."""
        if units:
            self.rates[kind] = seconds / units

    def fits(self, **work):
        """Whether so many units of each kind of work fit into the time left; work never done before counts as nothing."""
        expected = sum(self.rates.get(kind, 0.0) * units for kind, units in work.items())
        return time.time() + 1.1 * expected < self.end

    @contextmanager
    def timing(self, kind, units):
        """Measure the block; the list that it gets is filled with the seconds."""
        start = time.perf_counter()
        seconds = []
        yield seconds
        seconds.append(time.perf_counter() - start)
        self.learn(kind, seconds[0], units)
