"""The format of rows, and targets that have another one than the pool."""

import warnings

import pytest
from datasets import Dataset

from hf_gist.data.preparation.formats import CONVERSATIONS, PROMPTS, TEXT, format_of, warn_other_format
from hf_gist.errors import TargetFormatWarning


USER = {"role": "user", "content": "w1"}
ANSWER = {"role": "assistant", "content": "w2"}

ROWS = {
    "messages": ({"messages": [USER, ANSWER]}, CONVERSATIONS),
    "messages as JSON": ({"messages": '[{"role": "user", "content": "w1"}]'}, CONVERSATIONS),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "w1"}]}, CONVERSATIONS),
    "prompt in messages": ({"prompt": [USER], "completion": [ANSWER]}, CONVERSATIONS),
    "plain prompt": ({"prompt": "w1", "completion": "w2"}, PROMPTS),
    "plain prompt beside messages": ({"prompt": "w1", "completion": "w2", "messages": [USER]}, PROMPTS),
    "text": ({"text": "w1 w2"}, TEXT),
    "text beside messages": ({"text": "w1 w2", "messages": [USER, ANSWER]}, CONVERSATIONS),
    "prepared by SFTTrainer": ({"messages": [USER, ANSWER], "input_ids": [1], "labels": [1]}, CONVERSATIONS),
    "tokens": ({"input_ids": [1], "labels": [1]}, None),
    "other columns": ({"question": "w1"}, None),
}


@pytest.mark.parametrize("name", ROWS)
def test_formats(name):
    row, expected = ROWS[name]
    assert format_of(Dataset.from_list([row, row])) == expected


def test_what_is_no_dataset_or_empty_has_none():
    assert format_of([{"text": "w1"}]) is None
    assert format_of(Dataset.from_dict({"text": []})) is None


@pytest.mark.parametrize("target", ROWS)
@pytest.mark.parametrize("pool", ROWS)
def test_only_known_and_different_formats_warn(target, pool):
    ours, theirs = ROWS[target][1], ROWS[pool][1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sets = (Dataset.from_list([ROWS[name][0]]) for name in (target, pool))
        warn_other_format(*sets, ("target_file", "train_file"))
    found = [str(one.message) for one in caught if one.category is TargetFormatWarning]
    assert len(found) == (ours is not None and theirs is not None and ours != theirs)
    for text in found:
        assert f"The rows of `target_file` are {ours}, those of `train_file` {theirs}" in text
        assert ("chat template" in text) == (CONVERSATIONS in (ours, theirs))
