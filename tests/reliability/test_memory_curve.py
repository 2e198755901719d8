"""Memory as a function of pool size: only the coordinates and a few numbers per row may grow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT


BYTES_A_ROW = 200
"""For norms, counts, losses, lengths, order, scores and groups, and copies of them while a choice is made."""


def measured(rows, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.reliability.memory_curve", str(rows), str(folder)]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
    return [int(value) for value in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_grows_with_the_coordinates_only(tmp_path):
    small, few, _ = measured(10_000, tmp_path / "small")
    large, many, _ = measured(100_000, tmp_path / "large")
    print(f"peak beyond the model: {small / 2**20:.0f} MiB for 10,000 rows, {large / 2**20:.0f} MiB for 100,000")
    # the choice has a second copy of the coordinates, without the rows that cannot be scored
    assert large - small < 2 * (many - few) + 90_000 * BYTES_A_ROW
