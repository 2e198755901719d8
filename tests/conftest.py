import gc
import os


# Tests have no network: models and datasets are made in code.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_DISABLED"] = "true"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# also of the processes that tests start: two test files run at the same time
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import transformers
from packaging.version import Version

from tests.helpers.hub_fixtures import hub  # noqa: F401  (a fixture)


@pytest.fixture(autouse=True, scope="session")
def quiet_and_single_threaded():
    # the imported modules are never freed, and looking through them takes half a second at each end of a training
    gc.freeze()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def no_figures(request, monkeypatch):
    """Reports without figures, which take most of the time of a short training, except in tests marked `figures`."""
    if request.node.get_closest_marker("figures") is None:
        monkeypatch.setattr("hf_gist.report.page._all_figures", lambda parts: {})


DIVIDES_TWICE = Version("5.2.0") <= Version(transformers.__version__) < Version("5.5.4")
"""These versions of transformers divide accumulated gradients twice; see `hf_gist.training.parts.check_accumulation`."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Skip a test that accumulates batches, on a version of transformers that is refused for it."""
    try:
        return (yield)
    except ValueError as error:
        if not DIVIDES_TWICE or "so does Trainer, so they would be" not in str(error):
            raise
        pytest.skip(str(error))
