r"""How many of the best rows each cheap way to shorten a pool finds, without training: which rung a plan should have.

    python recipes/benchmarks/shortlists.py (the flags of frontier.py, with its --output and its scores)

For every target and two rules (the paper's, and the plain cosine with round robin) a shortlist of each way gets exact
scores until they have cost 10, 20 or 30 % of scoring the pool. Two numbers: the share of the exact selection that is in
the selection from the shortlist, and the mean exact score of that selection (0: of all rows, 1: of the exact selection).
"""

import dataclasses
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from frontier import parse
from frontier_parts.arms import COSINE, PAPER, random_rows
from frontier_parts.cases import Case
from frontier_parts.data import TOKENS, read_data
from frontier_parts.scores import Scores
from torch.nn import functional

from hf_gist import GISTConfig, Selection
from hf_gist.commands.preparing import Preparer
from hf_gist.config.warmup import WarmupSettings
from hf_gist.data.batches import plan_batches
from hf_gist.data.rows import row_lengths
from hf_gist.functional.selection.ranking import round_robin
from hf_gist.gist.scorers.rds_plus import position_weighted_mean
from hf_gist.gradients.modes import scoring_mode
from hf_gist.training.loading import load_base, load_tokenizer, padding_collator, positions


SHARES = (0.1, 0.2, 0.3)
LANDMARKS = 0.05
"""Share of the pool whose exact coordinates are carried to the other rows."""
RIDGE = 0.1
FIRST_BLOCKS = (1, 2)
RULES = {"the paper's rule": PAPER, "plain cosine, round robin": COSINE}


def first_states(model, rows, collator, blocks):
    """Position-weighted mean of the hidden states after the first blocks `[n, d]`."""
    decoder = model.get_base_model().model
    found = torch.zeros(len(rows), model.get_base_model().config.hidden_size)
    layers = decoder.layers
    seen = []
    handle = decoder.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    decoder.layers = layers[:blocks]
    try:
        # scoring_mode turns gradients on
        with scoring_mode(model), torch.no_grad():
            for batch in plan_batches(row_lengths(rows), len(rows), 4096):
                inputs = collator([rows[row] for row in batch])
                mask = inputs["attention_mask"]
                decoder(input_ids=inputs["input_ids"], attention_mask=mask, use_cache=False)
                found[batch] = position_weighted_mean(seen.pop(), mask)
    finally:
        decoder.layers = layers
        handle.remove()
    return found


def by_states(pool, targets, every):
    """All rows by the cosine of some representation with the pool's mean subtracted, each target in turn."""
    center = pool.mean(0)
    directions = functional.normalize((targets - center).double(), dim=1)
    return round_robin(pool - center, directions, every, (pool - center).norm(dim=1))


def carried(features, coordinates, norms, landmarks):
    """Coordinates and norms of all rows, predicted by ridge regression from those of some rows."""
    rows = functional.normalize(features - features.mean(0), dim=1).double()
    known = rows[landmarks]
    values = torch.cat([coordinates, norms.clamp(min=1e-12).log()[:, None]], 1).double()[landmarks]
    center = values.mean(0)
    gram = known @ known.T + RIDGE * torch.eye(len(landmarks), dtype=torch.float64)
    predicted = rows @ (known.T @ torch.linalg.solve(gram, values - center)) + center
    predicted = predicted.float()
    length = predicted[:, :-1].norm(dim=1)
    return predicted[:, :-1], torch.maximum(predicted[:, -1].exp(), length)


class Shortlists:
    """The ways to shorten the pool of one target.

    Args:
        case (`Case`): target and exact scores.
        states (`Callable`): number of blocks and dataset to hidden states.
        blocks (`list[int]`): the numbers of first blocks to try.
    """

    def __init__(self, case, states, blocks):
        self.case = case
        self.states = states
        self.blocks = blocks

    def orders(self, rule):
        """Name to the order in which rows get exact scores."""
        case = self.case
        pool, targets = case.variant.pool, case.variant.targets
        hidden = GISTConfig(budget=len(pool), scorer="rds_plus", strategy="round_robin")
        found = {
            "random rows": random_rows(case),
            "BM25": case.variant.best_matches,
            "mean input embeddings": case.nearest,
        }
        for blocks in self.blocks:
            states = (self.states(blocks, rows) for rows in (pool, targets))
            found[f"hidden states after {blocks} block(s)"] = by_states(*states, case.every)
        found["RDS+"] = Selection.choose(case.measured("rds_plus"), hidden).indices
        found["landmarks"] = self.by_landmarks(rule)
        return found

    def by_landmarks(self, rule):
        """Random landmarks first, then the rows of the best predicted scores."""
        case = self.case
        first = random_rows(case)[: int(LANDMARKS * len(case.every))]
        measured = case.measured()
        states = self.states(self.blocks[-1], case.variant.pool)
        coordinates, norms = carried(states, measured.coordinates, measured.norms, torch.tensor(first))
        predicted = dataclasses.replace(measured, coordinates=coordinates, norms=norms)
        taken = set(first)
        best = Selection.choose(predicted, GISTConfig(budget=len(case.every), **rule)).indices
        return first + [row for row in best if row not in taken]

    def agreement(self, rule):
        """Name to `(share of the exact selection, share of its mean score)` for each of `SHARES`."""
        case = self.case
        exact = Selection.choose(case.measured(), GISTConfig(budget=case.size, **rule))
        usable = exact.scores[torch.isfinite(exact.scores)].mean()
        best = exact.scores[exact.indices].mean()
        found = {}
        for name, order in self.orders(rule).items():
            cells = []
            for share in SHARES:
                rows = case.affordable(order, share * float(case.price_by_row.sum()))
                budget = GISTConfig(budget=min(case.size, len(rows)), **rule)
                chosen = Selection.choose(case.only(rows), budget).indices
                same = len(set(chosen) & set(exact.indices)) / len(exact.indices)
                cells.append((same, float((exact.scores[chosen].mean() - usable) / (best - usable))))
            found[name] = cells
        return found


def tables(found):
    """Markdown: means over targets and seeds, and the worst target.

    Args:
        found (`list[tuple]`): variant name, rule and agreement.
    """
    lines = []
    for rule in RULES:
        lines += [
            "",
            f"**{rule}** (mean share of the exact rows / mean share of their score / the same, worst target)",
            "",
        ]
        lines.append("| exact scores for | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |")
        lines.append("|---|" + "---|" * len(SHARES))
        own = [agreement for _, own_rule, agreement in found if own_rule == rule]
        for name in own[0]:
            cells = []
            for at in range(len(SHARES)):
                values = np.array([agreement[name][at] for agreement in own])
                cells.append(f"{values[:, 0].mean():.2f} / {values[:, 1].mean():.2f} / {values[:, 1].min():.2f}")
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv=None):
    """Print the tables of all seeds whose rows are scored or can be scored."""
    options = parse(argv)
    transformers.logging.set_verbosity_error()
    tokenizer, limit = load_tokenizer(options.model, None, False)
    base = load_base(options.model, None, "float32", False).eval()
    data = read_data(options, Preparer(tokenizer, min(options.max_length, limit, positions(base))))
    settings = WarmupSettings(
        lora_alpha=32,
        lora_dropout=0.0,
        lora_target_modules=options.lora_target_modules,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch_size,
    )
    collator = padding_collator(tokenizer)
    found = []
    blocks = [count for count in FIRST_BLOCKS if count < base.config.num_hidden_layers]
    for seed in options.seeds:
        scores = Scores(base, tokenizer, settings, data, Path(options.output), seed)

        @cache
        def states(blocks, rows, model=scores.model):
            return first_states(model, rows.select_columns(TOKENS), collator, blocks)

        for variant in data.variants:
            lists = Shortlists(Case(variant, scores, options.budget), states, blocks)
            found += [(variant.name, title, lists.agreement(rule)) for title, rule in RULES.items()]
    text = tables(found)
    print(text)
    return text


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
