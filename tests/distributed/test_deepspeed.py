"""DeepSpeed ZeRO on CPUs, where it is installed: `DS_BUILD_OPS=0 DS_ACCELERATOR=cpu pip install deepspeed`."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from hf_gist import GISTConfig
from tests import ROOT
from tests.test_callback import train


needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


def launch(folder, stage, processes, *changes):
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [*command, "-m", "tests.distributed.run_deepspeed", str(folder), str(stage), *changes],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.mark.parametrize("setting", [{"after_selection": "restart"}, {"scorer": "less"}], ids=str)
def test_what_deepspeed_would_undo_is_refused(tmp_path, monkeypatch, setting):
    monkeypatch.setattr(
        "hf_gist.training.inputs.AcceleratorState", lambda: SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    )
    name, value = next(iter(setting.items()))
    with pytest.raises(ValueError, match=f"`{name}='{value}'` does not work under DeepSpeed"):
        train(tmp_path, GISTConfig(budget=20, **setting))


@needs_deepspeed
def test_zero_2_selects_and_trains_as_one_process_does(tmp_path):
    results = {}
    for name, stage, processes in (("whole", 0, 1), ("zero", 2, 2)):
        done = launch(tmp_path / name, stage, processes)
        assert done.returncode == 0, done.stderr[-3000:]
        results[name] = json.loads((tmp_path / name / "result.json").read_text())
    whole, zero = results["whole"], results["zero"]
    assert zero["engine"] == "DeepSpeedEngine" and zero["indices"] == whole["indices"]
    for values in ("scores", "losses", "rates"):
        assert zero[values] == pytest.approx(whole[values], abs=1e-5), values


@needs_deepspeed
@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (2, ["after_selection=restart"], "`after_selection='restart'` does not work under DeepSpeed"),
        (3, [], "partitioned by DeepSpeed ZeRO-3"),
    ],
)
def test_what_cannot_work_is_refused_by_name(tmp_path, stage, changes, message):
    done = launch(tmp_path / "run", stage, 1, *changes)
    assert done.returncode != 0 and message in done.stderr
