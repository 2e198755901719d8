"""Support rows that could not reach the model as the training rows do are refused before training."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict

from hf_gist.config.gast import GASTConfig
from hf_gist.trainer import GASTTrainer
from hf_gist.training.gast.saved import save_support_gradient
from tests.helpers.gast import arguments, build_model, collate, rows


RAW = {
    "prompt, completion": {"prompt": "a", "completion": "b"},
    "messages": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "text": {"text": "a"},
}
TOKENISE = "tokenise them with the function that the train dataset is tokenised with; GASTSFTTrainer"


def trainer_with(folder, support, *, train=None, collator=collate, **changes):
    return GASTTrainer(
        model=build_model(), args=arguments(folder, **changes), train_dataset=train or rows(), data_collator=collator,
        gast_config=GASTConfig(keep=3), support_dataset=support,
    )  # fmt: skip


@pytest.mark.parametrize("unused", [True, False])
@pytest.mark.parametrize("made", [list, Dataset.from_list])
@pytest.mark.parametrize("columns", RAW)
def test_raw_rows_are_refused_with_their_columns(columns, made, unused, tmp_path):
    message = f"`support_dataset` has the columns {columns}; input_ids, labels, .* are missing.*{TOKENISE}"
    with pytest.raises(ValueError, match=message):
        trainer_with(tmp_path, made([RAW[columns]] * 3), remove_unused_columns=unused)


@pytest.mark.parametrize(
    ("support", "message"),
    [
        ("targets.jsonl", "`support_dataset` is the text 'targets.jsonl', not a dataset. Load the file first"),
        (Path("targets.jsonl"), "`support_dataset` is the text 'targets.jsonl', not a dataset"),
        (DatasetDict(train=Dataset.from_list(rows())), r"`support_dataset` is a dict of splits \(train\)"),
        ([], "`support_dataset` is empty"),
        (Dataset.from_list([]), "`support_dataset` is empty"),
        (iter(rows()), "`support_dataset` is a streaming dataset .*without a length"),
        (["a text"], "rows of `support_dataset` are of the type str.*are dicts"),
        ([[3, 4, 5]], "rows of `support_dataset` are of the type list.*are dicts"),
        ([{"input_ids": [3, 4, 5]}], "columns input_ids; labels, which .* is missing"),
    ],
)
def test_what_is_no_set_of_tokenised_rows_is_refused(support, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer_with(tmp_path, support)


def test_a_saved_gradient_needs_tokenised_rows_too(tmp_path):
    trainer = trainer_with(tmp_path, None)
    with pytest.raises(ValueError, match="`dataset` has the columns text; input_ids, labels"):
        save_support_gradient(trainer, [{"text": "a"}], tmp_path / "support.safetensors")


def test_raw_training_rows_are_named_where_they_are_the_support_set(tmp_path):
    with pytest.raises(ValueError, match="`train_dataset` has the columns text, and the model takes none"):
        trainer_with(tmp_path, None, train=Dataset.from_list([{"text": "a"}] * 8))


class Tokenising:
    """Makes the batch from texts, so that no row has tokens."""

    def __call__(self, texts):
        ids = torch.tensor([[3 + ord(letter) % 90 for letter in row["text"]] for row in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def test_rows_that_the_collator_takes_are_not_refused(tmp_path):
    texts = [{"text": f"abcdefg{letter}"} for letter in "abcdefghijklmnop"]
    trainer = trainer_with(tmp_path, texts, train=texts, collator=Tokenising(), remove_unused_columns=False)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps > 0


def test_a_mask_that_only_the_training_rows_have_is_not_missing(tmp_path):
    others = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows()]
    for support in (rows(), Dataset.from_list(rows())):
        trainer = trainer_with(tmp_path, support, train=others)
        trainer.train()
        assert trainer.state.global_step == trainer.state.max_steps > 0


def test_a_trainer_that_prepares_rows_takes_a_list_and_refuses_other_types(tmp_path):
    pytest.importorskip("trl")
    from hf_gist.trainer import GASTSFTTrainer
    from tests.gast.test_sft import trainer_on

    raw = [{"prompt": "a", "completion": "b"}]
    trainer = trainer_on(
        tmp_path, GASTSFTTrainer, build_model(), gast_config=GASTConfig(keep=3), support_dataset=raw * 4
    )
    trainer.train()
    assert trainer.state.global_step == 1
    with pytest.raises(ValueError, match=r"`support_dataset` is a tuple, .*Dataset.from_list\(rows\)"):
        trainer_on(tmp_path, GASTSFTTrainer, build_model(), gast_config=GASTConfig(keep=3), support_dataset=tuple(raw))


def test_support_rows_in_another_format_than_the_training_rows_warn(tmp_path):
    pytest.importorskip("trl")
    from hf_gist.errors import TargetFormatWarning
    from hf_gist.trainer import GASTSFTTrainer
    from tests.gast.test_sft import trainer_on

    text = Dataset.from_list([{"text": "a b"}] * 4)
    with pytest.warns(
        TargetFormatWarning, match="The rows of `support_dataset` are plain text, those of `train_dataset`"
    ):
        trainer_on(tmp_path, GASTSFTTrainer, build_model(), gast_config=GASTConfig(keep=3), support_dataset=text)
