"""Warm-up and scoring in `real_model.py`: kept in the output folder, and resumed after an interruption."""

import copy
import dataclasses
import os
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from frontier_parts.flags import lora_of
from transformers import PreTrainedModel

from hf_gist import GISTConfig, Selection, select
from hf_gist.costs.ledger import CostLedger
from hf_gist.functional.measurements import Measurements
from hf_gist.gist.artifacts import MANIFEST
from hf_gist.gradients.partial import PARTIAL
from hf_gist.training.loading import load_adapter, load_tokenizer, padding_collator, positions
from hf_gist.training.warmup import warmup_rows as rows_of_warmup
from hf_gist.utils.disk import read_json, write_json
from real.arms import PASSES, SCORERS
from real.clock import Clock
from real.data import SOURCE, Data, as_tokens, rows_of_targets
from real.training import compute_dtype, load_model, train


SECONDS = "seconds.json"
SCORED_FOR = "scored_for.json"
ONE_ROW = 1
"""Budget of the selections that are saved with the scores: scores do not depend on it."""


def gist_config(options, budget, seed, **fields):
    """The settings of a selection."""
    return GISTConfig(
        budget=budget,
        seed=seed,
        scoring_tokens_per_batch=options.tokens_per_batch,
        scoring_dtype=compute_dtype(options),
        **fields,
    )


@dataclass
class Scores:
    """The measurements of one model.

    Args:
        options (`Namespace`): of the script.
        base (`PreTrainedModel`): the model that scores.
        data (`Data`): pool and targets as tokens of this model.
        rows (`list[int]`): number in the pool of each row that this model can score.
        unscored (`Measurements`): see [`real.data.without_scores`], of the model that is trained.
        folder (`Path`): the output folder.
        clock (`Clock`): learns how long scoring takes.
        relative_size (`float`): its parameters, divided by those of the model that is trained.
        prefix (`str`): of the names of its folders.
    """

    options: object
    base: PreTrainedModel
    data: Data
    rows: list[int]
    unscored: Measurements
    folder: Path
    clock: Clock
    relative_size: float = 1.0
    prefix: str = ""
    _loaded: dict[Path, Selection] = field(default_factory=dict)

    @cached_property
    def collator(self):
        """Rows to a padded batch."""
        return padding_collator(self.data.tokenizer)

    def of(self, scorer, seed, target):
        """Measurements of the pool for one target, and the seconds they took with the warm-up.

        Args:
            scorer (`str`): key of `SCORERS`.
            seed (`int`): of the warm-up.
            target (`str`): name of the target.

        Returns:
            `tuple[Measurements, float]`, *optional*: `None` if scoring does not fit into the time left. The seconds are
            `None` if they are not known, because scoring was interrupted.
        """
        while (path := self._finished_for(scorer, seed, target)) is None:
            if not self._fits(scorer, seed):
                return None
            self._score(scorer, seed)
        found = self._load(path).measurements
        if len(self.rows) < len(self.unscored.norms):
            found = found.expand_to_pool(self.rows, self.unscored.label_tokens)
        found = dataclasses.replace(found, leaked=self.unscored.leaked, copy_of=self.unscored.copy_of)
        return found.for_targets(SOURCE, target), self._seconds(path, seed)

    def passes(self, scorer, seed):
        """Cost of scoring with the warm-up, in training passes of the trained model over the pool."""
        share = len(self.warmup_rows(seed)) / len(self.rows)
        return self.relative_size * (share + PASSES[scorer])

    # ---- Files ----

    def _load(self, path):
        if path not in self._loaded:
            self._loaded[path] = Selection.load(path)
        if len(self._loaded[path].measurements.norms) != len(self.rows):
            raise ValueError(f"{path} holds scores of another pool. Use another folder or delete this one.")
        return self._loaded[path]

    def _folders(self, scorer, seed):
        """The folders with scores, finished or not: targets that are added later get one of their own."""
        stem = f"{self.prefix}scores_{scorer}_{seed}"
        return [path for path in sorted(self.folder.glob(f"{stem}*")) if path.name == stem or f"{stem}_" in path.name]

    def _targets_of(self, path):
        """The targets of finished scores; a target without a usable row is one of them, so that it is not scored again."""
        if (path / SCORED_FOR).exists():
            return set(read_json(path / SCORED_FOR)["targets"])
        return set(self._load(path).measurements.target_columns[SOURCE])

    def _finished_for(self, scorer, seed, target):
        for path in self._folders(scorer, seed):
            if (path / MANIFEST).exists() and target in self._targets_of(path):
                return path
        return None

    def _next_folder(self, scorer, seed):
        """The folder to score into, and its targets: unfinished scores, or all targets that have none."""
        folders = self._folders(scorer, seed)
        finished = [path for path in folders if (path / MANIFEST).exists()]
        done = set().union(*(self._targets_of(path) for path in finished))
        missing = [name for name in self.options.targets if name not in done]
        for path in folders:
            if path not in finished:
                return path, read_json(path / SCORED_FOR)["targets"] if (path / SCORED_FOR).exists() else missing
        stem = self.folder / f"{self.prefix}scores_{scorer}_{seed}"
        return stem.with_name("_".join([stem.name, *missing])) if folders else stem, missing

    def _seconds(self, path, seed):
        costs = CostLedger.load(path)
        kept = self.folder / f"{self.prefix}warmup_{seed}" / SECONDS
        interrupted = (path / SCORED_FOR).exists() and read_json(path / SCORED_FOR)["interrupted"]
        if interrupted or costs is None or not kept.exists():
            return None
        return read_json(kept) + costs.totals()["selection_seconds"]

    # ---- Work ----

    def _fits(self, scorer, seed):
        work = {f"{self.prefix}{scorer}": len(self.rows)}
        if not (self.folder / f"{self.prefix}warmup_{seed}").exists():
            work[f"{self.prefix}train"] = len(self.warmup_rows(seed))
        return self.clock.fits(**work)

    def _score(self, scorer, seed):
        """Score the pool for all targets that have no scores; unfinished scores are finished first."""
        path, names = self._next_folder(scorer, seed)
        if without := set(names) - set(self.options.targets):
            raise ValueError(
                f"{path} has unfinished scores for other targets: add {', '.join(sorted(without))} to --targets, or "
                "delete this folder."
            )
        model = self._warmed(seed)
        path.mkdir(exist_ok=True)
        write_json(path / SCORED_FOR, {"targets": names, "interrupted": (path / PARTIAL).exists()})
        with self.clock.timing(f"{self.prefix}{scorer}", len(self.rows)) as seconds:
            select(
                model,
                self.data.pool,
                rows_of_targets(self.data.targets, names),
                gist_config(self.options, ONE_ROW, seed, target_group_column=SOURCE, **SCORERS[scorer]),
                data_collator=self.collator,
                progress=False,
                output_dir=path,
            )
        print(f"{path.name}: scored in {seconds[0]:.1f} s", flush=True)

    def warmup_rows(self, seed):
        """The rows of the pool that the warm-up trains on."""
        return rows_of_warmup(gist_config(self.options, ONE_ROW, seed), lora_of(self.options), len(self.rows))

    def _warmed(self, seed):
        """The model after its warm-up, now or at an earlier start."""
        path = self.folder / f"{self.prefix}warmup_{seed}"
        if not path.exists():
            rows = self.warmup_rows(seed)
            with self.clock.timing(f"{self.prefix}train", len(rows)) as seconds:
                model = train(self.base, self.data.pool.select(rows), self.collator, self.options, seed, 1)
            print(f"{path.name}: trained in {seconds[0]:.1f} s", flush=True)
            keep_adapter(model, seconds[0], path)
        return load_adapter(copy.deepcopy(self.base), str(path))


def keep_adapter(model, seconds, path):
    """Save an adapter under a temporary name, which is then renamed; another process may have been faster."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    model.save_pretrained(str(temporary))
    write_json(temporary / SECONDS, seconds)
    try:
        temporary.rename(path)
    except OSError:
        if not path.exists():
            raise
        shutil.rmtree(temporary)


def proxy_scores(options, data, unscored, folder, clock, trained):
    """The scores of the smaller model, which reads the same rows with its own tokenizer and template."""
    base = load_model(options.proxy_model, options)
    tokenizer, _ = load_tokenizer(options.proxy_model, None, False)
    limit = positions(base)
    pool, rows = as_tokens(data.raw_pool, tokenizer, "pool.jsonl for the proxy", limit)
    targets, _ = as_tokens(data.raw_targets, tokenizer, "targets for the proxy", limit)
    if without := set(options.targets) - set(targets[SOURCE]):
        raise ValueError(
            f"--proxy_model {options.proxy_model} has {limit} positions, and no row of {', '.join(sorted(without))} has as "
            "few tokens. Leave these --targets out, or take another proxy."
        )
    own = dataclasses.replace(data, pool=pool, targets=targets, tokenizer=tokenizer)
    size = base.num_parameters() / trained.num_parameters()
    return Scores(options, base, own, rows, unscored, folder, clock, size, "proxy_")
