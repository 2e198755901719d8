"""Shares and limits per source against a loop over single rows."""

import random

import numpy as np
import pytest
import torch

from hf_gist.functional.selection.budget import cut_to_budget, sampled_from_top
from hf_gist.functional.selection.quotas import NO_QUOTAS, Quotas


def slow_pick(order, amount, sizes, sources, shares, most):
    """Row by row: first every share, then the best of the rest; each part ends at the first row that does not fit."""
    taken, rows_of, used = set(), dict.fromkeys(sources, 0), 0
    for name, share in shares.items():
        own = 0
        for row in order:
            if sources[row] != name:
                continue
            if rows_of[name] == most.get(name, rows_of[name] + 1) or own + sizes[row] > share * amount + 1e-9:
                break
            taken.add(row)
            rows_of[name] += 1
            own += sizes[row]
            used += sizes[row]
    for row in order:
        name = sources[row]
        if row in taken or rows_of[name] == most.get(name, rows_of[name] + 1):
            continue
        if used + sizes[row] > amount:
            break
        taken.add(row)
        rows_of[name] += 1
        used += sizes[row]
    return [row for row in order if row in taken]


def random_case(seed):
    rng = random.Random(seed)
    size, names = rng.randint(1, 120), ["a", "b", "c=d", "e"][: rng.randint(1, 4)]
    sources = [rng.choice(names) for _ in range(size)]
    parts = [rng.random() for _ in names]
    shares = {
        n: p / sum(parts) * rng.choice([0.5, 1.0]) for n, p in zip(names, parts, strict=True) if rng.random() < 0.6
    }
    most = {name: rng.randint(0, size) for name in names if rng.random() < 0.5}
    order = rng.sample(range(size), rng.randint(1, size))
    tokens = torch.tensor([rng.randint(1, 30) for _ in range(size)])
    return rng, sources, shares, most, order, tokens


@pytest.mark.parametrize("seed", range(150))
def test_rows_and_tokens_against_the_loop(seed):
    rng, sources, shares, most, order, tokens = random_case(seed)
    quotas = Quotas(np.array(sources, dtype=object), shares, most)
    for sizes in (tokens, torch.ones_like(tokens)):
        amount = rng.randint(1, int(sizes.sum()))
        found = quotas.pick(order, amount, sizes)
        assert found == slow_pick(order, amount, sizes.tolist(), sources, shares, most)
        assert sizes[found].sum() <= amount
        for name, limit in most.items():
            assert sum(sources[row] == name for row in found) <= limit
        for name, share in shares.items():
            own = [row for row in order if sources[row] == name]
            left = [row for row in own if row not in found]
            full = len(own) - len(left) == most.get(name)
            got = int(sizes[[row for row in found if sources[row] == name]].sum())
            assert not left or full or got + int(sizes[left[0]]) > share * amount


@pytest.mark.parametrize("seed", range(60))
def test_a_draw_from_the_top_keeps_shares_and_limits(seed):
    rng, sources, shares, most, order, tokens = random_case(seed)
    quotas, times = Quotas(np.array(sources, dtype=object), shares, most), rng.choice([1.5, 2.0, 3.0])
    amount = rng.randint(1, len(sources))
    reachable = len(quotas.pick(order, amount, torch.ones_like(tokens)))
    if reachable == 0:
        return
    drawn = sampled_from_top(order, amount, "rows", tokens, times, seed, quotas)
    assert drawn == [row for row in order if row in drawn] and len(drawn) == reachable
    rows_of = {name: [row for row in order if sources[row] == name] for name in set(sources)}
    for name, rows in rows_of.items():
        got = sum(row in drawn for row in rows)
        assert got <= most.get(name, got)
        assert got >= min(int(shares.get(name, 0) * amount + 1e-9), most.get(name, got + 1), len(rows))


@pytest.mark.parametrize("seed", range(40))
def test_without_quotas_the_best_rows_are_a_prefix(seed):
    rng, sources, _, _, order, tokens = random_case(seed)
    amount = rng.randint(1, len(order))
    assert NO_QUOTAS.pick(order, amount, torch.ones_like(tokens)) == order[:amount]
    assert cut_to_budget(order, amount, "rows", tokens, Quotas(np.array(sources, dtype=object))) == order[:amount]


def test_a_share_that_is_used_anyway_changes_nothing():
    sources = np.array(["a", "b"] * 10, dtype=object)
    order, sizes = list(range(20)), torch.ones(20, dtype=torch.long)
    assert Quotas(sources, {"a": 0.5}).pick(order, 10, sizes) == order[:10]
    assert Quotas(sources, {"a": 1.0}).pick(order, 10, sizes) == order[::2]
    assert Quotas(sources, {"a": 0.3}, {"a": 3}).pick(order, 10, sizes) == [0, 1, 2, 3, 4, 5, 7, 9, 11, 13]
    assert Quotas(sources, {}, {"a": 0}).pick(order, 4, sizes) == [1, 3, 5, 7]
    # 0.29 * 100 is below 29 in floating point
    many = np.array(["a"] * 100 + ["b"] * 100, dtype=object)
    found = Quotas(many, {"b": 0.29}).pick(list(range(200)), 100, torch.ones(200, dtype=torch.long))
    assert sum(row >= 100 for row in found) == 29
