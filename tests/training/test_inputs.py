"""The callback in TRL's SFTTrainer."""

import warnings

import pytest
from datasets import Dataset

from hf_gist import GISTConfig, GISTDataSelectorCallback
from hf_gist.errors import TargetFormatWarning, UnusableTargetsWarning
from hf_gist.training.inputs import prepare_evaluation, prepare_targets
from hf_gist.training.parts import TrainerParts
from tests.helpers.tiny import lora_model
from tests.helpers.words import TEMPLATE, chats, tokenizer, varied


trl = pytest.importorskip("trl", reason="TRL is not installed")


def trainer(tmp_path, callback, rows, template=TEMPLATE, formatting_func=None, **arguments):
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
        formatting_func=formatting_func,
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


@pytest.mark.parametrize(
    "argument, prepare", [("target_dataset", prepare_targets), ("eval_dataset", prepare_evaluation)]
)
def test_an_sft_trainer_that_does_not_say_how_it_prepares_is_refused(tmp_path, argument, prepare):
    """Before TRL 1.7: its rows have no labels, and its `formatting_func` is not known afterwards."""
    rows = Dataset.from_list(chats(24))
    run = trainer(tmp_path, GISTDataSelectorCallback(GISTConfig(budget=4), rows), chats(24))
    del run._formatting_func
    with pytest.raises(ValueError, match=rf"`{argument}`: SFTTrainer of TRL \d.*Install trl>=1\.8"):
        prepare(rows, parts_of(run))


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


PAIRS = [{"prompt": f"w{i} w{i + 1}", "completion": f" w{i + 2} "} for i in range(24)]
TEXTS = [{"text": f"w{i} w{i + 1} w{i + 2} "} for i in range(24)]
FUNCTIONS = [{"name": "w80"}]
KINDS = {
    "prompt and completion": (PAIRS, {}),
    "labels on the prompt too": (PAIRS, {"completion_only_loss": False}),
    "messages beside prompt and completion": ([a | b for a, b in zip(chats(24), PAIRS, strict=True)], {}),
    "another column of texts": ([{"body": row["text"]} for row in TEXTS], {"dataset_text_field": "body"}),
    "formatting_func": (TEXTS, {"formatting_func": lambda row: "w90 w91 " + row["text"]}),
    "formatting_func, other columns": (
        [{"question": "w1", "answer": f"w{i}"} for i in range(24)],
        {"formatting_func": lambda row: f"{row['question']} w90 {row['answer']} "},
    ),
    "ShareGPT": (
        [{"conversations": [{"from": "user", "value": "w1"}, {"from": "assistant", "value": "w2"}]}] * 24,
        {},
    ),
    "tools": (
        [row | {"tools": FUNCTIONS} for row in chats(24)],
        {"template": "{% for t in tools or [] %}{{ t['name'] }} {% endfor %}" + TEMPLATE},
    ),
    "cut at the start": (chats(24), {"truncation_mode": "keep_end", "max_length": 4}),
    "shuffled": (chats(24), {"shuffle_dataset": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_what_sft_trainer_trains_on(tmp_path, kind):
    rows, settings = KINDS[kind]
    callback = GISTDataSelectorCallback(GISTConfig(budget=4), Dataset.from_list(rows))
    run = trainer(tmp_path, callback, rows, **settings)
    ours, theirs = prepared(callback, run), run.train_dataset
    order = sorted if kind == "shuffled" else list
    assert order(ours["input_ids"]) == order(theirs["input_ids"])
    assert order(ours["labels"]) == order(theirs["labels"])
    held_out = prepare_evaluation(Dataset.from_list(rows), parts_of(run))
    assert sorted(held_out["input_ids"]) == sorted(theirs["input_ids"])


def long_prompts(groups):
    """Conversations, one for each group; those of groups in upper case have a prompt that fills every row."""
    rows = varied(len(groups), 0)
    for row, group in zip(rows, groups, strict=True):
        row["group"] = group
        if group.isupper():
            row["messages"][0]["content"] = " ".join(["w1"] * 40)
    return Dataset.from_list(rows)


def test_target_rows_that_truncation_takes_are_named(tmp_path):
    config = GISTConfig(budget=4, strategy="round_robin", target_group_column="group", warmup_steps=2)
    targets = long_prompts(["a", "b", "A", "b"])
    callback = GISTDataSelectorCallback(config, targets)
    run = trainer(tmp_path, callback, varied(40, 1), max_length=16, assistant_only_loss=True)
    with pytest.raises(ValueError, match="Target groups without a usable row: 'A'"):
        run.train()
    callback.target_dataset = targets.map(lambda row: {"group": row["group"].lower()})
    with pytest.warns(UnusableTargetsWarning, match="1 of 4 target rows have no labelled token .*: 'a' 1 of 2"):
        run.train()
    assert sorted(callback.selection.group_names) == ["a", "b"]


def test_target_rows_that_cannot_be_prepared_are_named(tmp_path):
    rows = chats(8)
    rows[3]["messages"] = rows[3]["messages"][:1]
    callback = GISTDataSelectorCallback(GISTConfig(budget=4), Dataset.from_list(rows))
    run = trainer(tmp_path, callback, chats(24), assistant_only_loss=True)
    with pytest.raises(
        ValueError, match=r"1 of 8 rows cannot be used:\s+target_dataset, row 4: SFTTrainer cannot"
    ) as error:
        prepared(callback, run)
    # that is a flag of the commands
    assert "--skip_bad_rows" not in str(error.value) and "target_dataset.select(...)" in str(error.value)


def test_sources_are_read_from_the_trainers_own_rows(tmp_path):
    """Also where it drops and shuffles rows, so that the user's rows have other numbers."""
    rows = long_prompts(["a", "A", "b", "c"] * 10)
    config = GISTConfig(budget=4, source_column="group", warmup_steps=2)
    callback = GISTDataSelectorCallback(config, varied_targets())
    run = trainer(tmp_path, callback, list(rows), max_length=16, assistant_only_loss=True, shuffle_dataset=True)
    run.train()
    sources = callback.run.inputs.sources
    assert sources == list(run.train_dataset["group"])
    kept = skip_unless_dropped(run, rows)
    assert sorted(sources) == sorted(kept) and sources != kept


def skip_unless_dropped(run, rows):
    """The groups of the rows that have room for an answer; TRL before 1.9 keeps the other rows too."""
    kept = [group for group in rows["group"] if not group.isupper()]
    if len(run.train_dataset) == len(rows):
        pytest.skip("this TRL keeps rows without a labelled token")
    return kept


def test_other_rows_of_the_callback_are_refused_with_the_way_out(tmp_path):
    rows = long_prompts(["a", "A"] * 20)
    config = GISTConfig(budget=4, source_column="group", warmup_steps=2)
    callback = GISTDataSelectorCallback(config, varied_targets(), train_dataset=rows)
    run = trainer(tmp_path, callback, list(rows), max_length=16, assistant_only_loss=True)
    skip_unless_dropped(run, rows)
    with pytest.raises(ValueError, match="callback has 40 rows, the trainer's has 20.*Leave it out"):
        run.train()


def varied_targets():
    return Dataset.from_list(varied(4, 9))


def test_a_list_of_raw_targets_is_prepared_like_a_dataset(tmp_path):
    callback = GISTDataSelectorCallback(GISTConfig(budget=4), varied(4, 9))
    run = trainer(tmp_path, callback, varied(24, 1))
    as_dataset = GISTDataSelectorCallback(GISTConfig(budget=4), varied_targets())
    assert prepared(callback, run)["input_ids"] == prepared(as_dataset, run)["input_ids"]


def test_a_run_with_a_list_of_raw_targets_is_that_with_a_dataset(tmp_path):
    rows = [row | {"group": f"g{number % 2}"} for number, row in enumerate(varied(6, 9))]
    config = GISTConfig(budget=4, warmup_steps=2, target_group_column="group", target_holdout=0.25)
    found = []
    for number, targets in enumerate((rows, Dataset.from_list(rows))):
        callback = GISTDataSelectorCallback(config, targets)
        trainer(tmp_path / str(number), callback, varied(24, 1)).train()
        found.append((callback.selection.indices, callback.selection.group_names))
    assert found[0] == found[1] and found[0][1] == ["g0", "g1"]


@pytest.mark.parametrize("targets", [[{"question": "w1", "answer": "w2"}], [{"prompt": "w1"}]], ids=str)
def test_targets_in_no_known_format_name_their_columns(tmp_path, targets):
    callback = GISTDataSelectorCallback(GISTConfig(budget=4), Dataset.from_list(targets))
    run = trainer(tmp_path, callback, varied(24, 1))
    with pytest.raises(ValueError, match=f"`target_dataset` has the columns {', '.join(targets[0])}; expected"):
        prepared(callback, run)


def test_a_text_field_of_the_users_is_known(tmp_path):
    rows = [{"content": f"w{i} w{i + 1} w{i + 2}"} for i in range(24)]
    callback = GISTDataSelectorCallback(GISTConfig(budget=4), Dataset.from_list(rows[:3]))
    run = trainer(tmp_path, callback, rows, dataset_text_field="content")
    assert len(prepared(callback, run)) == 3


def test_targets_in_another_format_than_the_pool_warn(tmp_path):
    plain = [{"prompt": "w1 w2", "completion": " w3 w4"}, {"prompt": "w5", "completion": " w6"}]
    callback = GISTDataSelectorCallback(GISTConfig(budget=4), Dataset.from_list(plain))
    run = trainer(tmp_path, callback, varied(24, 1))
    with pytest.warns(
        TargetFormatWarning, match="`target_dataset` are plain prompts with completions, those of `train_d"
    ):
        prepared(callback, run)
    same = GISTDataSelectorCallback(GISTConfig(budget=4), varied_targets())
    with warnings.catch_warnings():
        warnings.simplefilter("error", TargetFormatWarning)
        prepared(same, run)


def test_sources_of_shuffled_rows_are_refused(tmp_path):
    rows = Dataset.from_list(chats(40))
    config = GISTConfig(budget=4, source_column="source")
    callback = GISTDataSelectorCallback(config, rows.select(range(4)), train_dataset=rows)
    with pytest.raises(ValueError, match="SFTTrainer shuffles its rows"):
        trainer(tmp_path, callback, chats(40), shuffle_dataset=True).train()


@pytest.mark.parametrize("arguments", [{"packing": True}, {"padding_free": True, "max_length": None}], ids=str)
def test_packing_is_refused(tmp_path, arguments):
    callback = GISTDataSelectorCallback(GISTConfig(budget=4), Dataset.from_list(chats(4)))
    with pytest.raises(ValueError, match="`packing` or `padding_free` is on"):
        trainer(tmp_path, callback, chats(40), **arguments).train()
