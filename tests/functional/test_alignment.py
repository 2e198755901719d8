"""How well the best rows of a pool align with the target rows, beside how well these do with each other."""

import dataclasses

import pytest
import torch

from hf_gist.functional.measurements import Measurements
from hf_gist.functional.selection.alignment import FEWEST_TARGETS, best_alignment
from hf_gist.functional.subspace import spectrum, target_coordinates


def measured(targets, pool):
    """Exact measurements of gradients `[M, D]` and `[N, D]`."""
    singular, u = spectrum(targets.double() @ targets.double().T)
    basis = (targets.double().T @ (u / singular)).float()
    tokens = torch.ones(len(pool), dtype=torch.long)
    return Measurements(
        pool @ basis,
        pool.norm(dim=1),
        tokens,
        singular,
        target_coordinates(singular, u),
        torch.ones(len(targets), dtype=torch.long),
    )


def around(centre, count, spread, seed):
    return centre + spread * torch.randn(count, len(centre), generator=torch.Generator().manual_seed(seed))


CENTRE = torch.eye(80)[0]


@pytest.mark.parametrize("selected", [1, 5, 300])
def test_as_by_a_plain_loop(selected):
    targets = around(CENTRE, 20, 0.3, 1)
    pool = around(CENTRE * 0.5, 200, 0.3, 2)
    eligible = torch.ones(200, dtype=torch.bool)
    eligible[:50] = False
    found = best_alignment(measured(targets, pool), eligible, selected)
    cosine = torch.nn.functional.cosine_similarity
    among = [max(float(cosine(a, b, dim=0)) for j, b in enumerate(targets) if j != i) for i, a in enumerate(targets)]
    best = sorted((max(float(cosine(row, t, dim=0)) for t in targets) for row in pool[50:]), reverse=True)
    count = min(selected, 10)
    assert found.rows == count
    assert found.targets == pytest.approx(float(torch.tensor(among).median()), rel=1e-4)
    assert found.best == pytest.approx(sum(best[:count]) / count, rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_rows_of_the_targets_kind(share):
    targets = around(CENTRE, 24, 0.1, 1)
    own = int(share * 400)
    pool = torch.cat([around(CENTRE, own, 0.1, 2), around(torch.eye(80)[1], 400 - own, 0.1, 3)])
    found = best_alignment(measured(targets, pool), torch.ones(400, dtype=torch.bool), 20)
    assert found.own_kind is (share > 0)


def test_nothing_to_compare_with():
    every = torch.ones(30, dtype=torch.bool)
    few = measured(around(CENTRE, FEWEST_TARGETS - 1, 0.1, 1), around(CENTRE, 30, 0.1, 2))
    assert best_alignment(few, every, 5) is None
    opposite = measured(torch.eye(80)[:20], around(CENTRE, 30, 0.1, 2))
    assert best_alignment(opposite, every, 5) is None
    unscored = dataclasses.replace(few, target_coordinates=torch.zeros(20, 0))
    assert best_alignment(unscored, every, 5) is None
