"""Target and evaluation rows that are in the pool."""

import json
import warnings

import pytest
import torch

from hf_gist import GISTConfig, GISTDataSelectorCallback, Selection, select
from hf_gist.data.leaks import find_leaks, normalised
from hf_gist.errors import LeakWarning
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows
from tests.helpers.words import tokenizer
from tests.test_callback import train


class WithTokenizer(PaddingCollator):
    tokenizer = tokenizer()


POOL, TARGETS, EVALUATION = token_rows(30, seed=1, low=8), token_rows(4, seed=2), token_rows(6, seed=3)


def leaky():
    """A pool that holds a target row at 5, the same words with other tokens at 6, and an evaluation row at 7."""
    pool = [dict(row) for row in POOL]
    pool[5], pool[7] = dict(TARGETS[1]), dict(EVALUATION[2])
    # <s> (1) is a special token and not among the decoded words
    pool[6] = {name: [1, *values] for name, values in TARGETS[2].items()}
    return pool


def chosen(collator=None, pool=None, targets=TARGETS, **kwargs):
    return select(
        lora_model(),
        as_dataset(pool or leaky()),
        as_dataset(targets),
        kwargs.pop("config", GISTConfig(budget=27)),
        data_collator=collator or WithTokenizer(),
        progress=False,
        **kwargs,
    )


def test_duplicates_are_reported_and_never_selected(tmp_path):
    with pytest.warns(LeakWarning) as caught:
        selection = chosen(eval_dataset=as_dataset(EVALUATION), output_dir=tmp_path)
    texts = [str(w.message) for w in caught if w.category is LeakWarning]
    assert any(
        "2 rows of the pool are also in `target_dataset` (1 with the same tokens, 1 with only the same words)" in t
        for t in texts
    )
    assert any("1 rows of the pool are also in `eval_dataset`" in t for t in texts)
    assert sorted(selection.indices) == [row for row in range(30) if row not in (5, 6, 7)]
    assert torch.isneginf(selection.scores[[5, 6, 7]]).all()
    leaks = json.loads((tmp_path / "manifest.json").read_text())["leaks"]
    assert leaks["target_dataset"] == {"rows": [5, 6], "exact": 1, "same_words": 1}
    assert leaks["eval_dataset"]["rows"] == [7]
    again = Selection.load(tmp_path)
    assert again.indices == selection.indices
    # no row aligns with a target better than its copy
    assert 5 in again.reselect(drop_target_duplicates=False, budget=4).indices


def test_duplicates_are_kept_without_drop_target_duplicates():
    with pytest.warns(LeakWarning):
        kept = chosen(config=GISTConfig(budget=4, drop_target_duplicates=False))
    assert 5 in kept.indices


def test_without_a_tokenizer_only_tokens_are_compared():
    with pytest.warns(LeakWarning, match=r"1 rows of the pool .*\(1 with the same tokens, 0 with only the same words"):
        selection = chosen(PaddingCollator(), config=GISTConfig(budget=29))
    assert 6 in selection.indices and 5 not in selection.indices


def test_no_warning_for_a_pool_without_duplicates():
    with warnings.catch_warnings():
        warnings.simplefilter("error", LeakWarning)
        assert len(chosen(pool=POOL, config=GISTConfig(budget=30)).indices) == 30


def test_a_warning_for_targets_from_the_evaluation_set():
    with pytest.warns(LeakWarning, match="1 target rows are evaluation rows"):
        chosen(pool=POOL, targets=[*TARGETS, EVALUATION[0]], eval_dataset=as_dataset(EVALUATION))


def test_the_callback_excludes_duplicates_too(tmp_path):
    targets, evaluation = as_dataset(TARGETS), as_dataset(EVALUATION)
    callback = GISTDataSelectorCallback(GISTConfig(budget=26, warmup_ratio=0.2), targets, eval_dataset=evaluation)
    with pytest.warns(LeakWarning):
        train(tmp_path, rows=leaky(), callback=callback)
    assert not {5, 7} & set(callback.selection.indices)


@pytest.mark.parametrize("guarded", [True, False])
def test_the_warm_up_does_not_see_leaked_rows_either(tmp_path, guarded):
    config = GISTConfig(budget=8, warmup_steps=6, drop_target_duplicates=guarded)
    callback = GISTDataSelectorCallback(config, as_dataset(TARGETS), eval_dataset=as_dataset(EVALUATION))
    with pytest.warns(LeakWarning):
        _, _, recorder = train(tmp_path, rows=leaky(), callback=callback)
    # the recorder identifies rows by their first two tokens
    leaked = {(a - 3) * 90 + b - 3 for a, b, *_ in (leaky()[row]["input_ids"] for row in (5, 7))}
    seen = {row for step in recorder.rows[:6] for row in step}
    assert len(seen) > 20 and bool(leaked & seen) is not guarded


def test_a_pool_of_duplicates_only_is_an_error(tmp_path):
    callback = GISTDataSelectorCallback(GISTConfig(budget=4, warmup_steps=1), as_dataset(TARGETS), eval_dataset=POOL)
    with pytest.warns(LeakWarning), pytest.raises(ValueError, match="No row of the pool is left to train on: all"):
        train(tmp_path, rows=POOL, callback=callback)


def test_rows_without_tokens_are_not_compared():
    assert find_leaks([{"text": "a"}], [{"text": "a"}]) is None


def test_evaluation_rows_without_tokens_are_a_warning_and_targets_are_still_compared():
    with pytest.warns(LeakWarning, match="The rows of `eval_dataset` have no `input_ids`"):
        found = find_leaks(leaky(), TARGETS, [{"text": "a"}], tokenizer())
    assert found.rows == {"target_dataset": [5, 6]}
    with pytest.warns(LeakWarning):
        found = find_leaks(leaky(), TARGETS, {"a": EVALUATION[:2], "b": EVALUATION[2:]}, tokenizer())
    assert found.rows == {"target_dataset": [5, 6], "eval_dataset['a']": [], "eval_dataset['b']": [7]}


def test_leaked_rows_keep_their_energy():
    with pytest.warns(LeakWarning):
        guarded = chosen(config=GISTConfig(budget=4))
    assert guarded.energy[5] > 0.5
    assert torch.equal(guarded.energy, guarded.reselect(drop_target_duplicates=False).energy)


def test_normalised_text_has_no_case_spacing_or_punctuation():
    assert normalised("  Ｗhat is\n«2+2» ?") == normalised("what is 2+2")
    assert normalised("Straße") == normalised("STRASSE") and normalised("a b") != normalised("ab")
    assert normalised("A well-known “fact” – it's (true)!") == normalised("a well known fact, it s true")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Solve x + 5 = 2. x = -3", "Solve x - 5 = -2. x = 3"),
        ("a += 1", "a -= 1"),
        ("Use C++.", "Use C#."),
        ("👍", "👎"),
        ("7 < 9", "7 > 9"),
        ("2*3", "2/3"),
        ("कि", "की"),
        ("10%", "10$"),
    ],
)
def test_signs_are_words(one, other):
    assert normalised(one) != normalised(other)
