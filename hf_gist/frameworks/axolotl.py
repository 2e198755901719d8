"""Plugin for axolotl: GIST and GAST from the sections `gist:` and `gast:` of its YAML configuration.

```yaml
plugins:
  - hf_gist.frameworks.axolotl.GISTPlugin
gist:
  budget: 0.05
  target_datasets:
    - path: targets.jsonl
      type: chat_template
```
"""

import logging
from copy import deepcopy
from typing import Any

from axolotl.common.datasets import load_datasets
from axolotl.integrations.base import BasePlugin
from axolotl.utils.config import normalize_cfg_datasets
from axolotl.utils.dict import DictDefault
from axolotl.utils.schemas.datasets import SFTDataset
from datasets import Dataset, concatenate_datasets
from pydantic import BaseModel, ConfigDict, Field, model_validator
from transformers import Trainer, TrainerCallback

from hf_gist.callback import GISTDataSelectorCallback
from hf_gist.config.gast import GASTConfig
from hf_gist.config.gist import GISTConfig
from hf_gist.trainer import GASTMixin


logger = logging.getLogger(__name__)

NAME = "hf_gist.frameworks.axolotl.GISTPlugin"

GROUP = "dataset"
"""Column of the target rows with the `path` of their entry in `target_datasets`; axolotl keeps no column of its own."""

KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
"""Settings of axolotl's fused LoRA kernels; if none is given, axolotl turns them on."""

OF_POOL = ("source_column", "source_shares", "source_max")
"""Fields of GISTConfig that need a column of the training rows."""

WARMUP_RATIO = 0.03
"""axolotl's own, without `warmup_steps` and `warmup_ratio`."""

PRESELECT = (
    "select with `hf-gist select` before training and give its `selected.jsonl` as the dataset, without this plugin"
)


# ---- The sections of the configuration ----


class GISTSection(BaseModel):
    """The section `gist:`: the target set in axolotl's dataset format, and the fields of GISTConfig."""

    model_config = ConfigDict(extra="allow")

    target_datasets: list[SFTDataset] = Field(min_length=1)

    def config(self) -> GISTConfig:
        """The other keys as a configuration.

        Raises:
            ValueError: for unknown keys and values out of range, naming each.
        """
        return GISTConfig.from_dict(dict(self.model_extra or {}))

    @model_validator(mode="after")
    def check(self) -> "GISTSection":
        """Check the fields of GISTConfig, and refuse those that need columns that axolotl drops."""
        config = self.config()
        given = [name for name in OF_POOL if getattr(config, name) is not None]
        if given:
            raise ValueError(
                f"`{given[0]}` needs a column of the pool, of which axolotl keeps only the tokens; {PRESELECT}."
            )
        if config.target_group_column not in (None, GROUP):
            raise ValueError(
                f"`target_group_column={config.target_group_column!r}`: axolotl keeps only the tokens of a row. Write "
                f"'{GROUP}' for one group per `path` in `target_datasets`, or leave it out for one group per row."
            )
        return self


class GASTSection(BaseModel):
    """The section `gast:`: an optional support set in axolotl's dataset format, and the fields of GASTConfig."""

    model_config = ConfigDict(extra="allow")

    support_datasets: list[SFTDataset] | None = Field(default=None, min_length=1)

    def config(self) -> GASTConfig:
        """The other keys as a configuration.

        Raises:
            ValueError: for unknown keys and values out of range, naming each.
        """
        return GASTConfig.from_dict(dict(self.model_extra or {}))

    @model_validator(mode="after")
    def check(self) -> "GASTSection":
        """Check the fields of GASTConfig, and refuse the one that needs a column that axolotl drops."""
        if self.config().source_column is not None:
            raise ValueError(
                "`source_column` needs a column of the training rows, of which axolotl keeps only the tokens."
            )
        return self


class GISTArgs(BaseModel):
    """What the plugin adds to axolotl's configuration; axolotl checks it before it loads anything."""

    gist: GISTSection | None = None
    gast: GASTSection | None = None

    @model_validator(mode="after")
    def check_run(self) -> "GISTArgs":
        """Check the settings of axolotl that the sections cannot be combined with.

        Raises:
            ValueError: naming every setting and what to write instead.
        """
        used = NAME in (getattr(self, "plugins", None) or [])
        problems = _problems(self) if self.gist or self.gast else []
        if used and not (self.gist or self.gast):
            problems = [
                f"`plugins:` names {NAME}, but there is neither a section `gist:` nor `gast:`; add one of them"
            ]
        if problems:
            raise ValueError("; ".join(problems) + ".")
        return self


def _problems(cfg: Any) -> list[str]:
    """What keeps a validated configuration of axolotl from running with the plugin."""
    packed = "puts several examples into one row, so their gradients cannot be separated"
    checks = [
        ("sample_packing", f"{packed}. Set it to false, or {PRESELECT}"),
        ("batch_flattening", f"{packed}. Set it to false"),
        ("streaming", f"gives rows one by one, so they cannot be ranked; {PRESELECT}"),
        ("pretraining_dataset", f"gives rows one by one, so they cannot be ranked; {PRESELECT}"),
        ("rl", f"trains on other rows than `target_datasets` describes; {PRESELECT}"),
        ("reward_model", f"trains on other rows than `target_datasets` describes; {PRESELECT}"),
        ("process_reward_model", f"trains on other rows than `target_datasets` describes; {PRESELECT}"),
        *(
            (
                name,
                "computes with the LoRA matrices in a fused kernel: no gradients of single rows. Set it to false",
            )
            for name in KERNELS
        ),
    ]
    problems = [f"`{name}: {_shown(cfg, name)}` {reason}" for name, reason in checks if getattr(cfg, name, None)]
    if getattr(cfg, "adapter", None) not in ("lora", "qlora"):
        problems.append(
            f"`adapter: {_shown(cfg, 'adapter')}`: the plugin needs the gradients of LoRA matrices; set 'lora'"
        )
    if cfg.gast and getattr(cfg, "trainer_cls", None):
        problems.append(f"`trainer_cls: {cfg.trainer_cls}` would not be used with `gast:`; leave one of the two out")
    return problems


def _shown(cfg: Any, name: str) -> str:
    """A setting as it stands in the YAML."""
    value = getattr(cfg, name, None)
    if isinstance(value, (list, dict)):
        return "..."
    return {True: "true", False: "false", None: "null"}.get(value, str(getattr(value, "value", value)))


# ---- Rows ----


def prepared_rows(cfg: DictDefault, entries: list[dict[str, Any]]) -> Dataset:
    """Rows that axolotl tokenises as it does its training rows, with their `path` in the column `GROUP`.

    Args:
        cfg (`DictDefault`): axolotl's validated configuration; it is not changed.
        entries (`list[dict]`): datasets, as in its section `datasets:`.

    Raises:
        ValueError: if axolotl keeps no row of an entry.
    """
    parts = []
    for entry in entries:
        own = _config_of(cfg, entry)
        rows = load_datasets(cfg=own).train_dataset
        if not len(rows):
            raise ValueError(f"axolotl kept no row of the dataset {entry.get('path')!r}; see its log for the reason.")
        parts.append(rows.add_column(GROUP, [str(entry.get("path"))] * len(rows)))
    return concatenate_datasets(parts)


def _config_of(cfg: DictDefault, entry: dict[str, Any]) -> DictDefault:
    """The configuration with one dataset that is used whole, in its order, and is not uploaded."""
    own = DictDefault(deepcopy(cfg.to_dict()))
    own.datasets = [DictDefault(deepcopy(dict(entry)))]
    for name in (
        "test_datasets",
        "push_dataset_to_hub",
        "dataset_shard_num",
        "dataset_shard_idx",
        "max_steps",
        "debug",
    ):
        own[name] = None
    own.val_set_size = 0.0
    own.shuffle_merged_datasets = False
    own.dataset_exact_deduplication = False
    normalize_cfg_datasets(own)
    return own


# ---- The plugin ----


class GISTPlugin(BasePlugin):
    """Adds [`GISTDataSelectorCallback`] to axolotl's trainer, and with a section `gast:` GAST.

    `num_epochs` is 1 + the number of passes over the selection, as for the callback. Artifacts are in
    `output_dir/gist`.

    Attributes:
        callback (`GISTDataSelectorCallback`, *optional*): that of the last run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.callback: GISTDataSelectorCallback | None = None

    def get_input_args(self) -> str:
        """The sections that the plugin adds to the configuration."""
        return f"{__name__}.{GISTArgs.__name__}"

    def register(self, cfg: DictDefault) -> None:
        """Turn off the fused LoRA kernels, which axolotl would otherwise turn on, if the user has not set them."""
        if not (cfg.get("gist") or cfg.get("gast")) or any(cfg.get(name) is not None for name in KERNELS):
            return
        for name in KERNELS:
            cfg[name] = False
        logger.warning("%s are set to false: fused LoRA kernels give no gradients of single rows.", ", ".join(KERNELS))

    def get_training_args(self, cfg: DictDefault) -> dict[str, Any] | None:
        """The number of steps and of warm-up steps, which axolotl derives from the size of the whole pool."""
        if not cfg.gist:
            return None
        length: dict[str, Any] = {"max_steps": cfg.max_steps or -1}
        if cfg.warmup_steps is None:
            # below 1, a share of the run's steps
            length["warmup_steps"] = WARMUP_RATIO if cfg.warmup_ratio is None else cfg.warmup_ratio
        return length

    def add_callbacks_pre_trainer(self, cfg: DictDefault, model: Any) -> list[TrainerCallback]:
        """The callback, which is passed to the constructor of the trainer."""
        self.callback = None
        if not cfg.gist:
            return []
        section = GISTSection(**cfg.gist.to_dict())
        targets = prepared_rows(cfg, cfg.gist.target_datasets)
        self.callback = GISTDataSelectorCallback(section.config(), targets)
        return [self.callback]

    def post_trainer_create(self, cfg: DictDefault, trainer: Trainer) -> None:
        """Give the callback the evaluation rows, which must not be selected."""
        if self.callback is not None:
            self.callback.eval_dataset = trainer.eval_dataset

    def get_trainer_cls(self, cfg: DictDefault) -> type[Trainer] | None:
        """axolotl's trainer with GAST, if there is a section `gast:`."""
        if not cfg.gast:
            return None
        section = GASTSection(**cfg.gast.to_dict())
        support = prepared_rows(cfg, cfg.gast.support_datasets) if section.support_datasets else None
        return gast_trainer(section.config(), support)


def gast_trainer(config: GASTConfig, support: Dataset | None) -> type[Trainer]:
    """A subclass of `AxolotlTrainer` with GAST, for axolotl to construct.

    Args:
        config (`GASTConfig`): the configuration.
        support (`Dataset`, *optional*): the support set; by default the training set.
    """
    # imports every trainer of axolotl
    from axolotl.core.trainers import AxolotlTrainer

    class AxolotlGASTTrainer(GASTMixin, AxolotlTrainer):
        """`AxolotlTrainer` with [`GASTMixin`]."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, gast_config=config, support_dataset=support, **kwargs)

    return AxolotlGASTTrainer
