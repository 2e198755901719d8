"""The same selection and the same training for one and for two gloo processes."""

import json

import pytest

from tests.helpers.processes import launch


def launched(folder, processes):
    assert launch("tests.distributed.run_gist", processes, folder, timeout=300) == {}
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


def test_two_processes_select_and_train_as_one_does(tmp_path):
    (alone,) = launched(tmp_path / "one", 1)
    ranks = launched(tmp_path / "two", 2)
    assert [rank["processes"] for rank in ranks] == [2, 2]
    for rank in ranks:
        assert rank["indices"] == alone["indices"] and rank["trained"] == alone["trained"]
        assert rank["pairs"] == alone["pairs"]
        assert rank["nearest"] == alone["nearest"] and rank["looked_at"] == alone["looked_at"]
    assert len(alone["chosen"]) == 3 and len({tuple(sorted(rows)) for _, rows in alone["chosen"]}) > 1
    for rank in ranks:
        assert rank["chosen"] == alone["chosen"]
        assert rank["losses_of_chosen"] == pytest.approx(alone["losses_of_chosen"], rel=1e-4)
    assert 8 <= sum(alone["looked_at"]) < 61
    for rank in ranks:
        assert rank["scores"] == pytest.approx(alone["scores"], abs=1e-5)
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        # the target loss, and the decision to stop
        assert rank["held_out"] == alone["held_out"] and len(rank["held_out"]) == 2
        assert len(rank["target_losses"]) == len(alone["target_losses"]) >= 3
        for ours, expected in zip(rank["target_losses"], alone["target_losses"], strict=True):
            assert ours == pytest.approx(expected, rel=1e-4)
        assert (rank["final_step"], rank["said"]) == (alone["final_step"], alone["said"])
    assert ranks[0]["target_losses"] == ranks[1]["target_losses"] and ranks[0]["adapter"] == ranks[1]["adapter"]
