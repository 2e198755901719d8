"""The callback on a model sharded by FSDP2 over two processes, against one process."""

import json

import pytest

from tests.distributed.run_sharded import run
from tests.gradients.test_passes import launched


@pytest.mark.parametrize("after_selection", ["continue", "restart"])
def test_a_sharded_model_selects_and_trains_as_a_whole_one_does(tmp_path, after_selection):
    alone = run(tmp_path / "alone", after_selection, sharded=False)
    done = launched("tests.distributed.run_sharded", 2, tmp_path, after_selection)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found["indices"] == alone["indices"]
        assert found["scores"] == pytest.approx(alone["scores"], abs=1e-5)
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)
