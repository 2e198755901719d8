"""SIGKILL at random moments of scoring and training: nothing is lost, nothing is done twice."""

import json
import os

import pytest

from tests.helpers.processes import start


KILLS = [5, pytest.param(40, marks=pytest.mark.slow)]


def killed(job, folder, kills, seed=0):
    folder.mkdir()
    log = folder / "output.log"
    process = start("tests.reliability.jobs", [job, str(folder), str(kills), str(seed)], dict(os.environ), log)
    process.join(1000)
    assert process.exitcode == 0, log.read_text()
    return json.loads(log.read_text().splitlines()[-1])


@pytest.mark.parametrize("kills", KILLS)
def test_scoring_goes_on_behind_what_it_finished(tmp_path, kills):
    undisturbed = killed("scoring", tmp_path / "whole", 0)["finished"][-1]
    result = killed("scoring", tmp_path / "killed", kills)
    assert result["kills"] == kills
    for finished in result["finished"]:
        # every row once: none lost, none scored twice
        assert sorted(finished["rows"]) == list(range(90))
        assert finished["indices"] == undisturbed["indices"]
    expected = (tmp_path / "whole" / "scores" / "coordinates.safetensors").read_bytes()
    assert (tmp_path / "killed" / "scores" / "coordinates.safetensors").read_bytes() == expected
    assert not (tmp_path / "killed" / "scores" / "partial").exists()


@pytest.mark.parametrize("kills", KILLS)
def test_training_goes_on_from_its_last_checkpoint(tmp_path, kills):
    undisturbed = killed("training", tmp_path / "whole", 0)["finished"][-1]
    result = killed("training", tmp_path / "killed", kills)
    assert result["kills"] == kills
    for finished in result["finished"]:
        assert finished["indices"] == undisturbed["indices"]
        assert finished["losses"] == undisturbed["losses"]
        assert finished["weights"] == undisturbed["weights"]


@pytest.mark.parametrize("kills", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_a_training_that_chooses_again_goes_on_before_at_and_after_each_selection(tmp_path, kills):
    undisturbed = killed("choosing_again", tmp_path / "whole", 0)["finished"][-1]
    result = killed("choosing_again", tmp_path / "killed", kills)
    assert result["kills"] == kills
    assert len(undisturbed["chosen"]) == 4 and len({tuple(sorted(rows)) for _, rows in undisturbed["chosen"]}) > 1
    for finished in result["finished"]:
        assert finished == undisturbed
