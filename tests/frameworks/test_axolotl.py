"""The axolotl plugin: with stand-ins for what axolotl 0.19.0 hands over, and in axolotl where it is installed."""

import importlib
import importlib.util
import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from tests import ROOT
from tests.helpers.tiny import PaddingCollator, lora_model, token_rows


pydantic = pytest.importorskip("pydantic", reason="axolotl's configuration is a pydantic model")

PLUGIN = "hf_gist.frameworks.axolotl"
PER_STEP = 4
FILES = {"pool.jsonl": token_rows(40), "a.jsonl": token_rows(4, 1), "b.jsonl": token_rows(3, 2), "empty.jsonl": []}
TARGETS = [{"path": "a.jsonl", "type": "chat_template"}, {"path": "b.jsonl", "type": "chat_template"}]


class DictDefault(dict):
    """As axolotl's: a missing key is `None`, and mappings inside are of the same class."""

    def __init__(self, values):
        super().__init__({key: self._own(value) for key, value in values.items()})

    @classmethod
    def _own(cls, value):
        if isinstance(value, dict):
            return cls(value)
        return [cls._own(item) for item in value] if isinstance(value, list) else value

    def __missing__(self, key):
        return None

    def __getattr__(self, name):
        return self[name]

    def __setattr__(self, name, value):
        self[name] = self._own(value)

    def to_dict(self):
        plain = lambda value: (  # noqa: E731
            value.to_dict()
            if isinstance(value, DictDefault)
            else [plain(item) for item in value]
            if isinstance(value, list)
            else value
        )
        return {key: plain(value) for key, value in self.items()}


class SFTDataset(pydantic.BaseModel):
    path: str | None = None
    type: str | None = None
    chat_template: str | None = None


class BasePlugin:
    def __init__(self):
        pass


class AxolotlTrainer(Trainer):
    """With the constructor, the loss and the arguments of axolotl's."""

    def __init__(self, *args, bench_data_collator=None, eval_data_collator=None, dataset_tags=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)


AxolotlTrainer.__module__ = "axolotl.core.trainers.base"


@pytest.fixture
def axolotl(monkeypatch):
    """Stand-ins for the modules of axolotl that the plugin imports; yields the plugin's module, and what was loaded."""
    loaded = []

    def load_datasets(cfg):
        loaded.append(cfg)
        rows = FILES[cfg.datasets[0].path]
        columns = {"input_ids": [r["input_ids"] for r in rows], "labels": [r["labels"] for r in rows]}
        return SimpleNamespace(train_dataset=Dataset.from_dict(columns))

    def normalize_cfg_datasets(cfg):
        for entry in cfg.datasets:
            entry["chat_template"] = entry["chat_template"] or cfg.chat_template

    contents = {
        "axolotl": {},
        "axolotl.common": {},
        "axolotl.common.datasets": {"load_datasets": load_datasets},
        "axolotl.core": {},
        "axolotl.core.trainers": {"AxolotlTrainer": AxolotlTrainer},
        "axolotl.integrations": {},
        "axolotl.integrations.base": {"BasePlugin": BasePlugin},
        "axolotl.utils": {},
        "axolotl.utils.config": {"normalize_cfg_datasets": normalize_cfg_datasets},
        "axolotl.utils.dict": {"DictDefault": DictDefault},
        "axolotl.utils.schemas": {},
        "axolotl.utils.schemas.datasets": {"SFTDataset": SFTDataset},
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)
    module = importlib.import_module(PLUGIN)
    yield module, loaded
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)


BASE = {
    "plugins": [f"{PLUGIN}.GISTPlugin"],
    "adapter": "lora",
    "chat_template": "tokenizer_default",
    "num_epochs": 3,
    "val_set_size": 0.1,
    "push_dataset_to_hub": "user/data",
}


def validated(module, **changes):
    """What axolotl makes of a YAML: `register`, then its own model with that of the plugin as a base class."""
    kernels = dict.fromkeys(module.KERNELS)
    cfg = DictDefault(BASE | changes)
    plugin = module.GISTPlugin()
    plugin.register(cfg)
    args = getattr(importlib.import_module(PLUGIN), plugin.get_input_args().rpartition(".")[2])
    fields = dict.fromkeys({**BASE, **kernels, **NOT_SUPPORTED, "max_steps": 0, "warmup_steps": 0}, (object, None))
    fields |= {"warmup_ratio": (object, None), "trainer_cls": (object, None)}
    own = pydantic.create_model("AxolotlInputConfig", __config__={"arbitrary_types_allowed": True}, **fields)
    merged = type("Merged", (own, args), {})
    return plugin, DictDefault(merged(**cfg.to_dict()).model_dump(exclude_none=True))


NOT_SUPPORTED = {
    "sample_packing": True,
    "batch_flattening": "auto",
    "streaming": True,
    "pretraining_dataset": [{"path": "x"}],
    "rl": "dpo",
    "reward_model": True,
    "process_reward_model": True,
    "lora_mlp_kernel": True,
    "lora_qkv_kernel": True,
    "lora_o_kernel": True,
}


def trained(plugin, cfg, folder, epochs=3, **arguments):
    """What axolotl's builder does with the hooks of a plugin; the trainer after `train()`."""
    pool = Dataset.from_list(FILES["pool.jsonl"])
    steps = len(pool) // PER_STEP
    # of the whole pool, as axolotl passes them
    length = {"max_steps": cfg.max_steps or steps * epochs, "warmup_steps": int(0.5 * steps * epochs)}
    own = {"per_device_train_batch_size": PER_STEP, "num_train_epochs": epochs, "report_to": "none", "use_cpu": True}
    own |= {"learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}
    args = TrainingArguments(str(folder), **{**own, **length, **(plugin.get_training_args(cfg) or {}), **arguments})
    model = lora_model()
    trainer = (plugin.get_trainer_cls(cfg) or AxolotlTrainer)(
        model=model,
        args=args,
        train_dataset=pool,
        eval_dataset=pool.select(range(5)),
        data_collator=PaddingCollator(),
        callbacks=plugin.add_callbacks_pre_trainer(cfg, model),
        dataset_tags=["pool.jsonl"],
        eval_data_collator=PaddingCollator(),
    )
    plugin.post_trainer_create(cfg, trainer)
    trainer.train()
    return trainer


def rates(trainer):
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


def test_gist_from_the_configuration(axolotl, tmp_path):
    module, loaded = axolotl
    plugin, cfg = validated(module, gist={"budget": 8, "target_datasets": TARGETS})
    trainer = trained(plugin, cfg, tmp_path)
    selection = plugin.callback.selection
    assert len(selection.indices) == 8 and trainer.state.global_step == 1 + 2 * 2
    assert plugin.callback.run.inputs.targets["input_ids"] == [
        r["input_ids"] for r in FILES["a.jsonl"] + FILES["b.jsonl"]
    ]
    assert not set(selection.indices) & set(range(5)), "evaluation rows are not selected"
    assert [cfg.datasets[0].path for cfg in loaded] == ["a.jsonl", "b.jsonl"]
    assert all(cfg.datasets[0].chat_template == "tokenizer_default" for cfg in loaded)
    assert all(cfg.val_set_size == 0 and cfg.push_dataset_to_hub is None for cfg in loaded)
    assert cfg.val_set_size == 0.1 and cfg.push_dataset_to_hub == "user/data"


@pytest.mark.parametrize("changes", [{}, {"warmup_ratio": 0.4}, {"warmup_steps": 2}])
def test_warmup_of_the_learning_rate_belongs_to_the_true_number_of_steps(axolotl, tmp_path, changes):
    plugin, cfg = validated(axolotl[0], gist={"budget": 8, "target_datasets": TARGETS}, **changes)
    trainer = trained(plugin, cfg, tmp_path, **({"warmup_steps": 2} if "warmup_steps" in changes else {}))
    rising = 1 if not changes else 2
    assert len(rates(trainer)) == 5 and rates(trainer).index(max(rates(trainer))) == rising


def test_max_steps_is_exact(axolotl, tmp_path):
    plugin, cfg = validated(axolotl[0], gist={"budget": 8, "target_datasets": TARGETS}, max_steps=9)
    assert trained(plugin, cfg, tmp_path, epochs=1).state.global_step == 9


def test_one_group_for_each_target_dataset(axolotl, tmp_path):
    section = {"budget": 8, "target_datasets": TARGETS, "target_group_column": "dataset"}
    plugin, cfg = validated(axolotl[0], gist=section)
    trained(plugin, cfg, tmp_path)
    assert plugin.callback.run.inputs.target_columns["dataset"] == ["a.jsonl"] * 4 + ["b.jsonl"] * 3


@pytest.mark.parametrize("support", [None, TARGETS])
def test_gast_from_the_configuration(axolotl, tmp_path, support):
    section = {"keep": 2} | ({"support_datasets": support} if support else {})
    plugin, cfg = validated(axolotl[0], gast=section)
    trainer = trained(plugin, cfg, tmp_path, epochs=1)
    assert isinstance(trainer, AxolotlTrainer) and trainer.gast_config.keep == 2
    assert "gast_kept_fraction" in str(trainer.state.log_history)
    assert (tmp_path / "gast_selection.parquet").exists()
    assert plugin.callback is None and plugin.get_training_args(cfg) is None


def test_both(axolotl, tmp_path):
    plugin, cfg = validated(axolotl[0], gist={"budget": 8, "target_datasets": TARGETS}, gast={"keep": 2})
    trainer = trained(plugin, cfg, tmp_path)
    assert len(plugin.callback.selection.indices) == 8 and trainer.gast is not None


def test_fused_kernels_that_axolotl_would_turn_on_are_off(axolotl, caplog):
    _, cfg = validated(axolotl[0], gist={"target_datasets": TARGETS})
    assert {cfg[name] for name in axolotl[0].KERNELS} == {False}
    assert "lora_qkv_kernel" in caplog.text


def test_kernels_are_the_users_business_without_the_sections(axolotl):
    plugin = axolotl[0].GISTPlugin()
    cfg = DictDefault({"adapter": "lora"})
    plugin.register(cfg)
    assert cfg == {"adapter": "lora"}


@pytest.mark.parametrize("name", NOT_SUPPORTED)
@pytest.mark.parametrize("section", ["gist", "gast"])
def test_settings_that_cannot_be_combined(axolotl, name, section):
    sections = {"gist": {"target_datasets": TARGETS}, "gast": {"keep": 2}}
    with pytest.raises(pydantic.ValidationError, match=f"`{name}: "):
        validated(axolotl[0], **{section: sections[section], name: NOT_SUPPORTED[name]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gist": {"budget": 3}}, "target_datasets"),
        ({"gist": {"target_datasets": []}}, "target_datasets"),
        ({"gist": {"target_datasets": TARGETS, "budgt": 3}}, r"unknown key\(s\) budgt"),
        ({"gist": {"target_datasets": TARGETS, "rank": 0}}, "`rank` must be at least 1"),
        ({"gist": {"target_datasets": TARGETS, "source_max": {"a": 3}}}, "`source_max`.*hf-gist select"),
        ({"gist": {"target_datasets": TARGETS, "target_group_column": "task"}}, "Write 'dataset'"),
        ({"gast": {"keep": 2, "support": "nothing"}}, "`support` must be one of"),
        ({"gast": {"keep": 2, "source_column": "source"}}, "`source_column`"),
        ({"gast": {"keep": 2}, "trainer_cls": "mine.Trainer"}, "trainer_cls: mine.Trainer"),
        ({"gist": {"target_datasets": TARGETS}, "adapter": None}, "adapter: null"),
        ({"gist": {"target_datasets": TARGETS}, "adapter": "ia3"}, "adapter: ia3"),
        ({}, "neither a section `gist:` nor `gast:`"),
    ],
)
def test_mistakes_in_the_configuration(axolotl, changes, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        validated(axolotl[0], **changes)


def test_a_plugin_of_an_earlier_run_does_nothing(axolotl):
    plugin, cfg = validated(axolotl[0], plugins=["another.Plugin"])
    assert plugin.get_training_args(cfg) is None and plugin.get_trainer_cls(cfg) is None
    assert plugin.add_callbacks_pre_trainer(cfg, None) == []


def test_target_datasets_of_which_axolotl_keeps_no_row(axolotl):
    plugin, cfg = validated(axolotl[0], gist={"target_datasets": [{"path": "empty.jsonl"}]})
    with pytest.raises(ValueError, match=r"no row of the dataset 'empty\.jsonl'"):
        plugin.add_callbacks_pre_trainer(cfg, None)


def test_the_configuration_of_the_page_is_valid(axolotl):
    values = yaml.safe_load((ROOT / "recipes" / "frameworks" / "axolotl.yaml").read_text(encoding="utf-8"))
    plugin, cfg = validated(axolotl[0], **values)
    assert plugin.get_training_args(cfg)["max_steps"] == -1 and cfg.gist.target_datasets


# ---- axolotl itself ----


@pytest.mark.skipif(importlib.util.find_spec("axolotl") is None, reason="axolotl is not installed")
def test_a_run_of_axolotl(tmp_path):
    values = yaml.safe_load((ROOT / "recipes" / "frameworks" / "axolotl.yaml").read_text(encoding="utf-8"))
    model = lora_model().unload()
    model.save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    for name, rows in (("pool.jsonl", 24), ("targets.jsonl", 4)):
        lines = [json.dumps(r | {"attention_mask": [1] * len(r["input_ids"])}) for r in token_rows(rows, len(name))]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    own = {"base_model": str(tmp_path / "model"), "dataset_prepared_path": str(tmp_path / "prepared")}
    own |= {"datasets": [{"path": str(tmp_path / "pool.jsonl"), "type": None}], "bf16": False, "fp16": False}
    own |= {
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "sequence_len": 64,
        "output_dir": str(tmp_path / "out"),
    }
    values |= own | {
        "chat_template": None,
        "gist": {"budget": 4, "target_datasets": [{"path": str(tmp_path / "targets.jsonl")}]},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, "-m", "axolotl.cli.train", str(tmp_path / "run.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "GIST: kept 4 of" in result.stdout + result.stderr
    assert (tmp_path / "out" / "gist" / "scores.parquet").exists()


def word_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, 99)}}
    raw = Tokenizer(models.WordLevel(words, unk_token="w3"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="w3"
    )
