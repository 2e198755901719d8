"""Target rows that cannot be used, alone and as whole groups."""

import json
import warnings

import pytest
import torch

from hf_gist import GISTConfig, GISTDataSelectorCallback, select
from hf_gist.errors import UnusableTargetsWarning
from hf_gist.gist import scoring, target_subspace
from hf_gist.gist.checks import check_groups
from hf_gist.gist.stream import select_stream
from hf_gist.hub.card_facts import selection_facts
from hf_gist.report.asked import asked
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows
from tests.test_callback import train


POOL = token_rows(30, seed=1)
CONFIG = GISTConfig(budget=6, target_group_column="task")


def targets(unlabelled=(), groups=("code", "chat", "code", "chat", "math")):
    rows = [row | {"task": task} for row, task in zip(token_rows(5, seed=2), groups, strict=True)]
    for number in unlabelled:
        rows[number]["labels"] = [-100] * len(rows[number]["labels"])
    return as_dataset(rows)


def chosen(given, config=CONFIG, **more):
    return select(
        lora_model(), as_dataset(POOL), given, config, data_collator=PaddingCollator(), progress=False, **more
    )


class Counting(PaddingCollator):
    """Counts the rows of the pool that it sees."""

    seen = 0

    def __call__(self, rows):
        self.seen += sum(row["input_ids"] in [own["input_ids"] for own in POOL] for row in rows)
        return super().__call__(rows)


def test_a_group_without_a_label_is_an_error_before_the_pool_is_read():
    collator = Counting()
    with pytest.raises(ValueError, match=r"Target groups without a usable row: 'chat' \(2 rows\), 'math' \(1 rows\)"):
        select(lora_model(), as_dataset(POOL), targets([1, 3, 4]), CONFIG, data_collator=collator, progress=False)
    assert collator.seen == 0


def test_the_callback_raises_before_the_warm_up(tmp_path):
    callback = GISTDataSelectorCallback(CONFIG, targets([4]))
    with pytest.raises(ValueError, match=r"without a usable row: 'math' \(1 rows\)"):
        train(tmp_path, rows=POOL, callback=callback)
    assert callback.selection is None


def test_a_stream_raises_before_it_is_read():
    def never():
        raise AssertionError
        yield

    with pytest.raises(ValueError, match="without a usable row: 'math'"):
        select_stream(lora_model(), never(), targets([4]), CONFIG, data_collator=PaddingCollator(), progress=False)


def with_infinite_targets(monkeypatch, numbers):
    """Gradients of some target rows that are not finite."""
    original = target_subspace.collect_vectors

    def spoiled(*args):
        vectors, facts = original(*args)
        facts.norms[list(numbers)] = float("inf")
        return vectors, facts

    monkeypatch.setattr(target_subspace, "collect_vectors", spoiled)


def test_a_group_without_a_finite_gradient_is_an_error_before_scoring(monkeypatch):
    with_infinite_targets(monkeypatch, [1, 3])
    monkeypatch.setattr(scoring, "collect_coordinates", None)
    with pytest.raises(ValueError, match=r"without a usable row: 'chat' \(2 rows\)"):
        chosen(targets())


def test_single_targets_are_a_warning_with_counts(tmp_path, monkeypatch):
    with_infinite_targets(monkeypatch, [0])
    with pytest.warns(UnusableTargetsWarning, match="2 of 5 target rows .*: 'chat' 1 of 2, 'code' 1 of 2"):
        found = chosen(targets([1]), output_dir=tmp_path)
    assert found.group_names == ["chat", "code", "math"]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["unusable_targets"] == {"rows": [0, 1], "groups": {"chat": 1, "code": 1}}
    assert ["target rows that cannot be used", "2 (chat 1, code 1)"] in asked(found).tables[1].rows
    assert "2 (`chat` 1, `code` 1)" in dict(selection_facts(found))["Targets that cannot be used"]


def test_without_names_single_rows_are_counted(monkeypatch):
    with pytest.warns(UnusableTargetsWarning, match="1 of 5 target rows .* not used. Check"):
        found = chosen(targets([2]), GISTConfig(budget=6))
    assert found.manifest["unusable_targets"] == {"rows": [2], "groups": {}}
    assert found.measurements.target_rows == [0, 1, 3, 4]


def test_usable_targets_are_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnusableTargetsWarning)
        found = chosen(targets())
    assert found.manifest["unusable_targets"] == {"rows": [], "groups": {}}
    assert "target rows that cannot be used" not in [row[0] for row in asked(found).tables[1].rows]


def test_a_random_draw_needs_no_group():
    assert len(chosen(targets([4]), GISTConfig(budget=6, strategy="random", target_group_column="task")).indices) == 6


def test_groups_against_a_loop():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        usable = torch.rand(8, generator=generator) < 0.6
        names = [f"g{n}" for n in torch.randint(0, 4, (8,), generator=generator).tolist()]
        lost = {name for name in names if not any(u for u, n in zip(usable.tolist(), names, strict=True) if n == name)}
        try:
            check_groups(usable, names)
        except ValueError as error:
            assert lost and all(repr(name) in str(error) for name in lost)
        else:
            assert not lost
    check_groups(torch.zeros(3, dtype=torch.bool), None)


def test_a_target_without_a_group_is_refused():
    rows = [row | {"task": None if number == 2 else "a"} for number, row in enumerate(targets([4]))]
    with pytest.raises(
        ValueError, match="`target_group_column='task'`: 1 of 5 rows have no value there, the first in row 3"
    ):
        chosen(rows, CONFIG)
