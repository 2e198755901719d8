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

from tests.helpers.hub_fixtures import hub  # noqa: F401  (a fixture)


@pytest.fixture(autouse=True, scope="session")
def quiet_and_single_threaded():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
