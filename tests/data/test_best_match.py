"""BM25 between targets and pool, against its formula written out."""

import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_gist.data.best_match import best_match_order, best_match_scores
from tests import ROOT


POOL = [[1, 2, 3, 9], [4, 4, 5, 9, 9], [9], [2, 7, 9], [6, 6, 6, 1, 9, 8], [4, 5, 2, 9]]
TARGETS = [[4, 5, 9], [1, 6, 9, 777]]


def by_formula(query, rows, k1=1.5, b=0.75):
    """Lucene's BM25 of each row for one query, a term of the query counted as often as it occurs."""
    mean = sum(map(len, rows)) / len(rows)
    found = np.zeros(len(rows))
    for term in query:
        holding = sum(term in row for row in rows)
        idf = math.log(1 + (len(rows) - holding + 0.5) / (holding + 0.5))
        for number, row in enumerate(rows):
            count = Counter(row)[term]
            found[number] += idf * count / (count + k1 * (1 - b + b * len(row) / mean))
    return found


def test_scores_follow_the_formula():
    scores = list(best_match_scores(Dataset.from_dict({"input_ids": POOL}), [{"input_ids": ids} for ids in TARGETS]))
    for query, own in zip(TARGETS, scores, strict=True):
        expected = by_formula(query, POOL)
        # every variant of BM25 may leave out the constant factor k1 + 1
        np.testing.assert_allclose(own / own.max(), expected / expected.max(), rtol=1e-5, atol=1e-6)


def test_targets_pick_in_turn_among_the_allowed_rows():
    pool = [{"input_ids": ids} for ids in POOL]
    targets = Dataset.from_dict({"input_ids": TARGETS})
    first, second = ([float(s) for s in scores] for scores in best_match_scores(pool, targets))
    allowed = torch.tensor([True, False, True, True, True, True])
    order = best_match_order(pool, targets, allowed)
    assert sorted(order) == [0, 2, 3, 4, 5]
    assert order[0] == max((0, 2, 3, 4, 5), key=first.__getitem__)
    assert order[1] == max(set(order) - {order[0]}, key=second.__getitem__)
    assert best_match_order(pool, targets, allowed, limit=3) == order[:3]


def test_pairs_are_matched_by_prompt_and_both_answers():
    pair = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4]}
    other = {"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8]}
    assert best_match_order([other, pair], [pair | {"prompt_ids": [5]}], torch.ones(2, dtype=torch.bool))[0] == 1


def test_a_target_without_any_known_token_still_picks():
    pool = [{"input_ids": ids} for ids in POOL]
    assert best_match_order(pool, [{"input_ids": [777]}], torch.ones(6, dtype=torch.bool)) == [0, 1, 2, 3, 4, 5]


def test_rows_without_tokens_are_refused_by_name():
    with pytest.raises(ValueError, match="`target_dataset` has no token ids.*need `input_ids`"):
        list(best_match_scores([{"input_ids": [1]}], [{"text": "a"}]))


@pytest.mark.parametrize("before", ["", "import jax.lax; mine = jax.lax"])
def test_an_installed_jax_is_not_started(tmp_path, before):
    """bm25s would start it, and it takes most of a GPU's memory; a JAX that the user imported stays as it is."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("")
    (tmp_path / "jax" / "lax.py").write_text(
        "calls = []\ndef top_k(values, k):\n    calls.append(k)\n    raise SystemExit('JAX was started')\n"
    )
    program = f"""
import sys
{before}
kept = [name for name in sys.modules if name.split(".")[0] == "jax"]
from hf_gist.data.best_match import best_match_scores
assert "bm25s" not in sys.modules, "most selections need none"
scores = list(best_match_scores([{{"input_ids": [1, 2]}}, {{"input_ids": [3]}}], [{{"input_ids": [3]}}]))
assert scores[0].argmax() == 1
from bm25s import selection
assert not selection.JAX_IS_AVAILABLE
assert [name for name in sys.modules if name.split(".")[0] == "jax"] == kept, kept
import jax.lax
assert jax.lax.calls == [] and {"jax.lax is mine" if before else "True"}
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
