"""The callback in TRL's SFTTrainer."""

import pytest
from datasets import Dataset

from hf_gist import GISTConfig, GISTDataSelectorCallback
from hf_gist.training.inputs import prepare_evaluation, prepare_targets
from hf_gist.training.parts import TrainerParts
from tests.helpers.tiny import lora_model
from tests.helpers.words import TEMPLATE, chats, tokenizer


trl = pytest.importorskip("trl", reason="TRL is not installed")


def trainer(tmp_path, callback, rows, template=TEMPLATE, **arguments):
    settings = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "max_length": 32,
        "bf16": False,
    } | arguments
    return trl.SFTTrainer(
        model=lora_model(),
        args=trl.SFTConfig(str(tmp_path), **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(template),
        callbacks=[callback],
    )


@pytest.mark.parametrize("assistant_only", [False, True])
def test_raw_conversations_are_selected_and_trained_on(tmp_path, assistant_only):
    rows, wanted = chats(20) * 4, Dataset.from_list([row for row in chats(16) if row["source"] == "family2"])
    # these few words repeat, and the copies of the targets are what there is to find
    kept = {"drop_target_duplicates": False, "drop_pool_duplicates": False}
    config = GISTConfig(budget=8, warmup_ratio=0.2, source_column="source", **kept)
    callback = GISTDataSelectorCallback(config, wanted, train_dataset=Dataset.from_list(rows))
    run = trainer(tmp_path, callback, rows, assistant_only_loss=assistant_only)
    run.train()
    assert len(callback.selection.indices) == 8
    assert run.state.global_step == run.state.max_steps == 4 + 2 * 2
    assert sum(rows[i]["source"] == "family2" for i in callback.selection.indices) >= 6


def parts_of(run):
    return TrainerParts(run.args, run.model, run.get_train_dataloader(), None, None, run.processing_class, run)


def prepared(callback, run):
    return prepare_targets(callback.target_dataset, parts_of(run))


@pytest.mark.parametrize("assistant_only", [False, True])
def test_targets_are_tokenised_as_sft_trainer_does(tmp_path, assistant_only):
    rows = chats(24)
    callback = GISTDataSelectorCallback(GISTConfig(budget=4), Dataset.from_list(rows))
    run = trainer(tmp_path, callback, rows, assistant_only_loss=assistant_only)
    ours = prepared(callback, run)
    theirs = run.train_dataset
    assert ours["input_ids"] == theirs["input_ids"] and ours["labels"] == theirs["labels"]


def test_targets_follow_the_template_that_sft_trainer_trains_with(tmp_path, monkeypatch):
    # TRL has marked versions of the templates that it knows
    marked = "w9 " + TEMPLATE
    plain = TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    monkeypatch.setattr("trl.trainer.sft_trainer.get_training_chat_template", lambda *_: marked)
    rows = chats(24)
    callback = GISTDataSelectorCallback(GISTConfig(budget=4), Dataset.from_list(rows))
    run = trainer(tmp_path, callback, rows, plain, assistant_only_loss=True)
    ours, theirs = prepared(callback, run), run.train_dataset
    assert ours["input_ids"] == theirs["input_ids"] and ours["labels"] == theirs["labels"]
    held_out = prepare_evaluation({"a": Dataset.from_list(rows)}, parts_of(run))["a"]
    assert held_out["input_ids"] == theirs["input_ids"]
    assert run.processing_class.chat_template == plain and {ids[0] for ids in theirs["input_ids"]} == {15}


def test_prompt_completion_targets_match_too(tmp_path):
    rows = [{"prompt": f"w{i} w{i + 1}", "completion": f" w{i + 2} "} for i in range(24)]
    callback = GISTDataSelectorCallback(GISTConfig(budget=4), Dataset.from_list(rows))
    run = trainer(tmp_path, callback, rows)
    ours = prepared(callback, run)
    assert ours["input_ids"] == run.train_dataset["input_ids"] and ours["labels"] == run.train_dataset["labels"]


@pytest.mark.parametrize(
    ("arguments", "config", "message"),
    [
        ({"truncation_mode": "keep_end"}, {}, "truncation_mode='keep_end' cannot be tokenised here"),
        ({"shuffle_dataset": True}, {"source_column": "source"}, "SFTTrainer shuffles its rows"),
    ],
)
def test_what_cannot_match_sft_trainers_rows_is_refused(tmp_path, arguments, config, message):
    rows = Dataset.from_list(chats(40))
    callback = GISTDataSelectorCallback(GISTConfig(budget=4, **config), rows.select(range(4)), train_dataset=rows)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, callback, chats(40), **arguments).train()


@pytest.mark.parametrize("arguments", [{"packing": True}, {"padding_free": True, "max_length": None}], ids=str)
def test_packing_is_refused(tmp_path, arguments):
    callback = GISTDataSelectorCallback(GISTConfig(budget=4), Dataset.from_list(chats(4)))
    with pytest.raises(ValueError, match="`packing` or `padding_free` is on"):
        trainer(tmp_path, callback, chats(40), **arguments).train()
