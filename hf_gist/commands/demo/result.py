"""Settings and results of the demo."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from hf_gist.commands.demo.model import ModelSizes
from hf_gist.commands.demo.tasks import DataSizes
from hf_gist.config.warmup import WarmupSettings


GIST = "GIST"
RANDOM = "random"
WHOLE = "whole pool"
UNTRAINED = "untrained"


@dataclass(frozen=True)
class DemoSettings:
    """All sizes in the demo.

    Args:
        data (`DataSizes`): rows.
        model (`ModelSizes`): the Llama and its pre-training.
        lora (`WarmupSettings`): adapter, learning rate and batch size of all fine-tuning runs.
        budget (`float`): share of the pool that GIST keeps; the random rows are as many.
        passes (`int`): passes over the GIST selection after its warm-up.
    """

    data: DataSizes = field(default_factory=DataSizes)
    model: ModelSizes = field(default_factory=ModelSizes)
    lora: WarmupSettings = WarmupSettings(learning_rate=3e-3, per_device_train_batch_size=16)
    budget: float = 0.05
    passes: int = 4


@dataclass
class DemoResult:
    """What a run of the demo measured.

    Args:
        losses (`dict[str, float]`): target test loss of each training run and of the untrained model.
        rows (`dict[str, int]`): rows of the pool in each training run.
        steps (`dict[str, int]`): optimizer steps of each training run.
        seconds (`dict[str, float]`): wall time of each phase.
        kept (`int`): selected rows.
        found (`int`): selected rows of the target task.
        hidden (`int`): rows of the target task in the pool.
        found_by_chance (`int`): rows of the target task among the random rows.
        share_by_length (`float`): expected share of the target task among rows drawn by answer length alone.
    """

    losses: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    kept: int = 0
    found: int = 0
    hidden: int = 0
    found_by_chance: int = 0
    share_by_length: float = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the wall time of a phase."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)

    def share_of_pool(self) -> float:
        """Share of the pool that is the target task."""
        return self.hidden / self.rows[WHOLE]
