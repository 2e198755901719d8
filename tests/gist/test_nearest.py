"""Rows nearest to a target by their mean input embeddings, against a plain loop."""

import pytest
import torch
from datasets import Dataset

from hf_gist.gist.scoring_cost import nearest
from hf_gist.gist.scoring_cost.nearest import nearest_order
from tests.helpers.tiny import lora_model


def by_loop(weights, pool, targets, allowed):
    """Each target in turn picks its nearest remaining row."""

    def mean(row):
        return weights[row].mean(0).double() if row else torch.zeros(weights.shape[1], dtype=torch.float64)

    means = torch.stack([mean(row) for row in pool])
    wanted = torch.stack([mean(row) for row in targets]) - means.mean(0)
    cosines = torch.nn.functional.cosine_similarity((means - means.mean(0))[None], wanted[:, None], dim=2)
    left = [row for row in range(len(pool)) if allowed[row]]
    picked = []
    while left:
        for own in cosines:
            if left:
                best = max(left, key=lambda row: (float(own[row]), -row))
                left.remove(best)
                picked.append(best)
    return picked


@pytest.mark.parametrize("chunk", [1, 17, 1 << 18])
def test_targets_pick_the_nearest_row_in_turn(monkeypatch, chunk):
    monkeypatch.setattr(nearest, "CHUNK_TOKENS", chunk)
    model = lora_model()
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 9, (40,), generator=generator).tolist()
    rows = [torch.randint(1, 60, (length,), generator=generator).tolist() for length in lengths]
    pool = Dataset.from_dict({"input_ids": rows[:35]})
    targets = [{"input_ids": row} for row in rows[35:]]
    allowed = torch.rand(35, generator=generator) > 0.2
    order = nearest_order(model, pool, targets, allowed)
    weights = model.get_base_model().get_input_embeddings().weight.detach()
    assert order == by_loop(weights, rows[:35], rows[35:], allowed)
    assert nearest_order(model, pool, targets, allowed, limit=4) == order[:4]


def test_padding_does_not_count():
    model = lora_model()
    rows = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    plain = Dataset.from_dict({"input_ids": rows})
    padded = {"input_ids": [row + [0] * (6 - len(row)) for row in rows]}
    padded["attention_mask"] = [[1] * len(row) + [0] * (6 - len(row)) for row in rows]
    allowed = torch.ones(3, dtype=torch.bool)
    targets = Dataset.from_dict({"input_ids": [[8, 9, 5]]})
    assert nearest_order(model, Dataset.from_dict(padded), targets, allowed) == nearest_order(
        model, plain, targets, allowed
    )


def test_a_model_without_readable_embeddings_is_refused_by_name():
    class Holder(torch.nn.Module):
        def get_input_embeddings(self):
            return torch.nn.Identity()

    with pytest.raises(ValueError, match="Rows are compared by their input embeddings, and Identity"):
        nearest_order(Holder(), [{"input_ids": [1]}], [{"input_ids": [1]}], torch.ones(1, dtype=torch.bool))


def test_embeddings_that_are_not_finite_are_refused():
    model = lora_model()
    with torch.no_grad():
        model.get_base_model().get_input_embeddings().weight[7, 0] = float("nan")
    rows = Dataset.from_dict({"input_ids": [[5, 6], [7, 8], [9]]})
    with pytest.raises(ValueError, match="input embeddings of a token of the pool are not finite"):
        nearest_order(model, rows, rows, torch.ones(3, dtype=torch.bool))
