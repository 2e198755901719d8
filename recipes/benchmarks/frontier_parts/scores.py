"""The warm-up and the exact scores of one seed, for all targets at once; saved, and read again by a later run."""

import copy
from functools import cached_property
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frontier_parts.data import TARGET, TOKENS, Data
from hf_gist import GISTConfig, Selection, select
from hf_gist.config.warmup import WarmupSettings
from hf_gist.costs.flops import ModelWork
from hf_gist.functional.measurements import Measurements
from hf_gist.gist.artifacts import MANIFEST
from hf_gist.training.loading import fresh_lora, load_adapter, padding_collator
from hf_gist.training.warmup import warm_up, warmup_rows
from hf_gist.utils.disk import write_json
from hf_gist.utils.terminal import say


WARMUP_RATIO = 0.05
"""Share of the pool that the warm-up trains on."""

DONE = "warmup.json"


class Scores:
    """Warm-up and scores of one seed.

    Args:
        base (`PreTrainedModel`): the base model.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        settings (`WarmupSettings`): LoRA, learning rate and batch size.
        data (`Data`): pool and targets.
        folder (`Path`): where they are saved.
        seed (`int`): of the LoRA, the rows of the warm-up and their order.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: WarmupSettings,
        data: Data,
        folder: Path,
        seed: int,
    ) -> None:
        self.base = base
        self.tokenizer = tokenizer
        self.settings = settings
        self.data = data
        self.folder = folder
        self.seed = seed
        self._measured: dict[str, Measurements] = {}

    @cached_property
    def model(self) -> PeftModel:
        """The model after its warm-up."""
        folder = self.folder / f"warmup_{self.seed}"
        base = copy.deepcopy(self.base)
        if (folder / DONE).exists():
            return load_adapter(base, str(folder))
        config = GISTConfig(warmup_ratio=WARMUP_RATIO, seed=self.seed)
        rows = warmup_rows(config, self.settings, len(self.data.pool))
        model = fresh_lora(base, self.settings, self.seed)
        say(f"seed {self.seed}: warm-up on {len(rows)} rows")
        warm_up(model, self.data.pool.select_columns(TOKENS), self.tokenizer, config, self.settings, folder, rows)
        # written last: without it, the adapter may be incomplete
        write_json(folder / DONE, {"rows": rows})
        return model

    @cached_property
    def work(self) -> ModelWork:
        """Operations of the model."""
        return ModelWork.of(self.model)

    def measured(self, scorer: str) -> Measurements:
        """The measurements of the whole pool with a scorer, for the targets of all names together."""
        if scorer not in self._measured:
            folder = self.folder / f"scores_{scorer}_{self.seed}"
            self._measured[scorer] = (
                Selection.load(folder).measurements if (folder / MANIFEST).exists() else self._score(scorer, folder)
            )
        return self._measured[scorer]

    def _score(self, scorer: str, folder: Path) -> Measurements:
        say(f"seed {self.seed}: scoring {len(self.data.pool)} rows ({scorer})")
        selection = select(
            self.model,
            self.data.pool.select_columns(TOKENS),
            self.data.targets,
            GISTConfig(target_group_column=TARGET, scorer=scorer, seed=self.seed),
            data_collator=padding_collator(self.tokenizer),
            output_dir=folder,
            progress=False,
        )
        return selection.measurements
