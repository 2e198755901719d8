"""`trainer.push_to_hub()` of every trainer, up to the files in the repository."""

import json

import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import PeftConfig
from transformers import Trainer, TrainingArguments

from hf_gist import GASTConfig, GASTTrainer, GISTConfig, GISTDataSelectorCallback
from hf_gist.hub.model_card import BEGIN, write_card
from hf_gist.hub.run import find_run
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, patterned_rows
from tests.helpers.words import chats, tokenizer


GIST = GISTConfig(budget=8, warmup_ratio=0.2, drop_target_duplicates=False)
GAST = GASTConfig(keep=2)
SETTINGS = {
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "report_to": [],
    "disable_tqdm": True,
    "push_to_hub": True,
    # or a push is left out while the one before is not finished
    "hub_always_push": True,
    "hub_model_id": "jane/model",
    "save_strategy": "epoch",
    "eval_strategy": "epoch",
    "bf16": False,
}


def plain(tmp_path, cls, callbacks=(), settings=SETTINGS, **more):
    rows = as_dataset(patterned_rows(40)).remove_columns("source")
    return cls(
        model=lora_model(),
        args=TrainingArguments(str(tmp_path / "out"), **settings),
        train_dataset=rows,
        eval_dataset=rows.select(range(8)),
        data_collator=PaddingCollator(),
        callbacks=list(callbacks),
        **more,
    )


def conversational(tmp_path, cls, callbacks=(), **more):
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    rows = Dataset.from_list(chats(40)).remove_columns("source")
    return cls(
        model=lora_model(),
        args=trl.SFTConfig(str(tmp_path / "out"), max_length=32, **SETTINGS),
        train_dataset=rows,
        eval_dataset=rows.select(range(8)),
        processing_class=tokenizer(),
        callbacks=list(callbacks),
        **more,
    )


def targets(trainer):
    return trainer.train_dataset.select(range(4))


def make(kind, tmp_path):
    if "sft" in kind:
        trl = pytest.importorskip("trl", reason="TRL is not installed")
        from hf_gist.trainer import GASTSFTTrainer

        callback = GISTDataSelectorCallback(GIST, Dataset.from_list(chats(4)))
        if kind == "sft":
            return conversational(tmp_path, trl.SFTTrainer, [callback])
        return conversational(tmp_path, GASTSFTTrainer, [callback], gast_config=GAST)
    if kind == "gast":
        return plain(tmp_path, GASTTrainer, gast_config=GAST)
    return plain(tmp_path, Trainer, [GISTDataSelectorCallback(GIST, as_dataset(patterned_rows(4)))])


@pytest.mark.parametrize("kind", ["stock", "sft", "gast", "gast sft"])
@pytest.mark.figures
def test_the_pushed_card_has_the_section_of_the_run(hub, tmp_path, kind):
    trainer = make(kind, tmp_path)
    trainer.train()
    trainer._finish_current_push()
    during = hub.files("models/jane/model")["README.md"].decode()
    used = {"gist": kind != "gast", "gast": "gast" in kind}
    assert BEGIN in during and len(hub.messages) == 2, "the pushes of a training in progress have it too"
    trainer.push_to_hub()
    files = hub.files("models/jane/model")
    text = files["README.md"].decode()
    card = ModelCard(text)
    assert text.count(BEGIN) == 1 and text.index(BEGIN) > text.index("# "), "it follows the trainer's own card"
    assert {"hf-gist", *(tag for tag, yes in used.items() if yes)} <= set(card.data.tags)
    assert "generated_from_trainer" in text or "generated automatically" in text
    assert ("**8 of 40 rows**" in text) == used["gist"] and ("Masking by layer" in text) == used["gast"]
    assert {r.metric_type for r in card.data.eval_results} >= {"loss"}
    logged = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    assert [r.metric_value for r in card.data.eval_results if r.metric_type == "loss"] == [logged]
    for config, yes in ((GIST, used["gist"]), (GAST, used["gast"])):
        assert (config.FILE in files) == yes
        if yes:
            assert type(config).from_pretrained("jane/model") == config
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(files)
    if used["gist"]:
        assert "gist/scores.png" in files and "](gist/scores.png)" in text
    public = b"".join(content for name, content in files.items() if name.endswith((".md", ".json")))
    assert str(tmp_path).encode() not in public and b"hf_secret" not in public
    if PeftConfig.from_pretrained(tmp_path / "out").base_model_name_or_path is None:
        assert "base_model" not in card.data.to_dict()


def test_a_trainer_without_hf_gist_is_left_alone(hub, tmp_path):
    trainer = plain(tmp_path, Trainer)
    trainer.push_to_hub()
    assert "hf-gist" not in hub.files("models/jane/model")["README.md"].decode()


def test_mode_all_is_plain_training_and_says_nothing(hub, tmp_path):
    trainer = plain(tmp_path, GASTTrainer, gast_config=GASTConfig(mode="all"))
    trainer.push_to_hub()
    files = hub.files("models/jane/model")
    assert "hf-gist" not in files["README.md"].decode() and "gast_config.json" not in files


def test_a_gast_training_without_a_card_leaves_what_one_is_made_from(tmp_path):
    settings = SETTINGS | {"push_to_hub": False, "save_strategy": "no", "eval_strategy": "no"}
    trainer = plain(tmp_path, GASTTrainer, [], settings, gast_config=GASTConfig(keep=2))
    trainer.train()
    assert not (tmp_path / "out" / "README.md").exists()
    assert GASTConfig.from_pretrained(tmp_path / "out") == GASTConfig(keep=2)
    run = find_run(tmp_path / "out")
    assert run.gast == GASTConfig(keep=2) and run.gast_manifest["train_dataset"]["rows"]
    assert BEGIN in write_card(run).read_text()
    (tmp_path / "out" / "gast_manifest.json").unlink()
    assert BEGIN in write_card(find_run(tmp_path / "out")).read_text()


def test_a_card_written_by_hand_of_the_trainer_has_it_once(tmp_path):
    settings = SETTINGS | {"push_to_hub": False, "save_strategy": "no", "eval_strategy": "no"}
    callback = GISTDataSelectorCallback(GIST, as_dataset(patterned_rows(4)))
    trainer = plain(tmp_path, Trainer, [callback], settings)
    trainer.train()
    trainer.create_model_card()
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.count(BEGIN) == 1 and "### Evaluation" not in text
    manifest = json.loads((tmp_path / "out" / "gist" / "manifest.json").read_text())
    assert manifest["train_dataset"]["fingerprint"]


def test_text_that_a_run_without_a_push_has_left_is_removed_before_a_push(tmp_path):
    settings = SETTINGS | {"push_to_hub": False, "save_strategy": "no", "eval_strategy": "no"}
    callback = GISTDataSelectorCallback(GIST, as_dataset(patterned_rows(4)))
    trainer = plain(tmp_path, Trainer, [callback], settings)
    trainer.train()
    examples = tmp_path / "out" / "gist" / "examples.json"
    examples.write_text(json.dumps(json.loads(examples.read_text()) | {"rows": {"0": [["answer", "private"]]}}))
    trainer.callback_handler.on_push_begin(trainer.args, trainer.state, trainer.control)
    assert "private" not in examples.read_text() and "private" not in (tmp_path / "out" / "report.html").read_text()
