"""A selection as it is printed."""

from tests.helpers.reports import selection_of


def test_it_prints_as_one_line():
    selection = selection_of(400, budget=6)
    text = repr(selection)
    assert text.startswith("Selection(6 of 400 rows by GIST") and len(text) < 200 and "\n" not in text
    assert f"best first: [{', '.join(map(str, selection.indices[:5]))}, ...])" in text
    assert str(selection) == text
    assert repr(selection_of(400, budget=2)).endswith("]" + ")") and "..." not in repr(selection_of(400, budget=2))
