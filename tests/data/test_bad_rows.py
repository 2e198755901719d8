"""Unusable rows are counted, located and explained."""

import pytest

from hf_gist.data.bad_rows import BadRows


def test_the_first_three_rows_are_named_with_their_reasons():
    bad = BadRows(10, lambda row: f"train_file pool.jsonl, line {row + 1}")
    for row in (7, 2, 5, 9):
        bad.add(row, f"`content` of row {row} is null")
    bad.add(2, "something else")
    with pytest.raises(ValueError, match="4 of 10 rows cannot be used") as error:
        bad.refuse()
    text = str(error.value)
    assert "train_file pool.jsonl, line 3: `content` of row 2 is null" in text
    assert "line 8" in text and "line 10" not in text and "and 1 more" in text and "--skip_bad_rows" in text


def test_rows_without_a_fault_are_kept_in_order():
    bad = BadRows(4, str)
    bad.refuse()
    bad.add(1, "empty")
    assert bad.kept() == [0, 2, 3]
    assert bad.report() == [{"row": "1", "reason": "empty"}]
