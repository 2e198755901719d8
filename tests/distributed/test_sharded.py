"""The callback on a model sharded by FSDP2 over two processes, against one process."""

import json

import pytest

from tests.distributed.run_sharded import run
from tests.helpers.processes import launch


AFTER_SELECTION = ("continue", "restart")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """What two processes wrote: a folder for each value of `after_selection`."""
    folder = tmp_path_factory.mktemp("sharded")
    assert launch("tests.distributed.run_sharded", 2, folder, *AFTER_SELECTION) == {}
    return folder


@pytest.mark.parametrize("after_selection", AFTER_SELECTION)
def test_a_sharded_model_selects_and_trains_as_a_whole_one_does(sharded, tmp_path, after_selection):
    alone = run(tmp_path, after_selection, sharded=False)
    for rank in range(2):
        found = json.loads((sharded / after_selection / f"rank{rank}.json").read_text())
        assert found["indices"] == alone["indices"]
        assert found["scores"] == pytest.approx(alone["scores"], abs=1e-5)
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)
