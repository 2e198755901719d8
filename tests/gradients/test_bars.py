"""The progress bar of a pass counts tokens, starts where an interrupted pass ended, and ends full."""

import pytest
import torch
from tqdm.auto import tqdm

from hf_gist.gradients import passes
from hf_gist.gradients.collect import collect_coordinates
from hf_gist.gradients.partial import PartialScores
from hf_gist.gradients.passes import DatasetPass
from hf_gist.gradients.vectors import GradientVectors
from tests.gradients.test_passes import Interrupted, StopsAfter
from tests.helpers.tiny import PaddingCollator, as_dataset, lora_model, token_rows


POOL = token_rows(40, seed=1)


class Untokenised(torch.utils.data.Dataset):
    """Rows that only the collator can tokenise."""

    def __len__(self):
        return len(POOL)

    def __getitem__(self, row):
        return {"text": row}


class Tokenising(PaddingCollator):
    def __call__(self, rows):
        return super().__call__([POOL[row["text"]] for row in rows])


@pytest.fixture
def bars(monkeypatch):
    """All bars that were opened, with the updates of each."""
    opened = []

    class Recorded(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.updates = []
            opened.append(self)

        def update(self, n=1):
            self.updates.append(n)
            return super().update(n)

    monkeypatch.setattr(passes, "tqdm", Recorded)
    return opened


def scan(pool, collator, shards=None):
    model = lora_model()
    basis = {name: torch.zeros(1, size) for name, size in GradientVectors(model).sizes.items()}
    return collect_coordinates(DatasetPass(model, collator, 40), pool, basis, "rows", shards=shards)


def test_the_bar_counts_tokens(bars):
    scan(as_dataset(POOL), PaddingCollator())
    (bar,) = bars
    tokens = sum(len(row["input_ids"]) for row in POOL)
    assert (bar.unit, bar.unit_scale, bar.total, bar.n) == ("tok", True, tokens, tokens)
    # batches have about equally many tokens, and up to four times as many short rows as long ones
    assert max(bar.updates[1:-1]) <= 40 and min(bar.updates[1:-1]) >= 20


def test_a_resumed_pass_starts_with_what_is_done(bars, tmp_path):
    partial = PartialScores(tmp_path, every=2)
    with pytest.raises(Interrupted):
        scan(as_dataset(POOL), StopsAfter(5), partial.shards("rows"))
    done = sum(bars[0].updates[:5])
    scan(as_dataset(POOL), PaddingCollator(), partial.shards("rows"))
    assert bars[1].updates[0] == done > 0
    assert bars[1].n == bars[1].total == sum(len(row["input_ids"]) for row in POOL)


def test_without_lengths_the_bar_counts_rows(bars):
    scan(Untokenised(), Tokenising())
    assert (bars[0].unit, bars[0].total, bars[0].n) == ("row", 40, 40)
