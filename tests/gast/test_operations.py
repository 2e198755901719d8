"""Operations of a masked step beyond those of a stock step: on a GPU each is a kernel launch, and some wait for it."""

import warnings
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer

from hf_gist.config.gast import GASTConfig
from hf_gist.errors import NoEffectWarning
from hf_gist.trainer import GASTTrainer
from tests.helpers.gast import arguments, build_model, collate, rows, support_rows_in, train


WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "index", "bincount", "is_nonzero", "_unique2")
"""Operations whose result, or its shape, must be read by the host."""

CONFIGS = {
    "random": GASTConfig(keep=3, mode="random"),
    "reused support gradient": GASTConfig(keep=3, support_every=100),
    "momentum": GASTConfig(keep=3, support="momentum"),
    "new support gradient": GASTConfig(keep=3),
    "new support gradient, topk": GASTConfig(keep=3, mode="topk"),
}
PER_GROUP = {"random": 17, "reused support gradient": 43, "momentum": 44, "new support gradient": 52}
"""Most operations (without views) for each of the groups of six matrices."""

PER_BATCH = 110
"""Most operations for a whole batch: its masks, the counts and the statistics."""

VIEWS = {
    "view",
    "_unsafe_view",
    "slice",
    "select",
    "transpose",
    "t",
    "expand",
    "unsqueeze",
    "split",
    "alias",
    "detach",
}
VIEWS |= {"permute", "split_with_sizes", "unbind", "lift_fresh", "squeeze"}


@pytest.fixture(autouse=True)
def as_on_a_gpu():
    with support_rows_in("batch"):
        yield


class Operations(TorchDispatchMode):
    """Counts the operations within a `with` block, backward pass included."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


class Steps:
    """A trainer whose steps are run individually; the first ones have been."""

    def __init__(self, trainer_class, folder, config=None, device="cpu", layers=3):
        model = build_model("llama", dropout=0.1) if layers == 3 else build_model("llama", layers_to_transform=[0])
        extra = {} if config is None else {"gast_config": config}
        self.trainer = trainer_class(
            model=model, args=arguments(folder, use_cpu=device == "cpu"), train_dataset=rows("llama", 64),
            data_collator=collate, **extra,
        )  # fmt: skip
        self.trainer.create_optimizer()
        self.trainer.current_gradient_accumulation_steps = 1
        batch = collate([{name: row[name] for name in ("input_ids", "labels")} for row in rows("llama", 8)])
        self.batch = {name: values.to(device) for name, values in batch.items()}
        self.items = torch.tensor(40, device=device)
        for _ in range(3):
            self.run()
            self.trainer.optimizer.step()
            self.trainer.state.global_step += 1

    def run(self):
        return self.trainer.training_step(self.trainer.model, dict(self.batch), self.items)


def extra_operations(folder, config, **options):
    """Operations of a masked step less those of a stock step, by name."""
    counts = []
    for trainer_class, own in ((GASTTrainer, config), (Trainer, None)):
        steps = Steps(trainer_class, folder, own, **options)
        with Operations() as operations:
            steps.run()
        counts.append(operations.counts)
    masked, stock = counts
    masked.subtract(stock)
    return masked


def kernels(counts):
    return sum(count for name, count in counts.items() if name not in VIEWS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_masked_step_does_not_wait_for_the_device(name, tmp_path):
    counts = extra_operations(tmp_path, CONFIGS[name])
    assert {name: counts[name] for name in WAITS if counts[name] > 0} == {}


@pytest.mark.parametrize("name", PER_GROUP)
def test_number_of_operations(name, tmp_path):
    three = kernels(extra_operations(tmp_path, CONFIGS[name]))
    one = kernels(extra_operations(tmp_path, CONFIGS[name], layers=1))
    assert (three - one) / 2 <= PER_GROUP[name]
    assert three <= 3 * PER_GROUP[name] + PER_BATCH


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_masked_step_waits_for_a_gpu_as_often_as_a_stock_step(name, tmp_path):
    waits = []
    for trainer_class, config in ((GASTTrainer, CONFIGS[name]), (Trainer, None)):
        steps = Steps(trainer_class, tmp_path, config, device="cuda")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                steps.run()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits.append([str(warning.message) for warning in caught if "synchroniz" in str(warning.message)])
    assert len(waits[0]) == len(waits[1])


@pytest.mark.parametrize(
    ("labelled", "config", "reason"),
    [
        (1, {}, "no per-device batch has more samples with a labelled token than `keep=0.5` keeps"),
        (0, {"mode": "positive", "support": "batch"}, "no sample has a labelled token"),
    ],
)
def test_why_no_sample_was_dropped_from_batches_without_labels(tmp_path, labelled, config, reason):
    data = rows("llama", 16)
    for at, row in enumerate(data):
        if at >= labelled:
            row["labels"] = [-100] * len(row["labels"])
    with pytest.warns(NoEffectWarning, match=f"GAST dropped no sample in the whole run: {reason}"):
        train(build_model(), tmp_path, data, config=GASTConfig(**{"support": "momentum", **config}), max_steps=2)
