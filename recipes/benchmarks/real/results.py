"""The finished runs in the output folder of `real_model.py`: one file each, so that processes can share the folder."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from hf_gist.gradients.partial import refuse_other_settings
from hf_gist.utils.disk import as_json, read_json, write_json
from real.arms import EVERY_ARM, UNTRAINED
from real.gast import gast_title


RUNS = "runs"
SETTINGS = "settings.json"


def title_of(arm):
    """The name of an arm in the table."""
    if arm == UNTRAINED:
        return "untrained"
    return EVERY_ARM[arm].title if arm in EVERY_ARM else gast_title(arm)


@dataclass(frozen=True)
class Key:
    """What a run is told by.

    Args:
        arm (`str`): its name.
        target (`str`): whose test set is tested.
        budget (`float`, *optional*): share of the pool to train on.
        seed (`int`, *optional*): the untrained model has none.
    """

    arm: str
    target: str
    budget: float | None = None
    seed: int | None = None

    @property
    def file(self):
        """Name of its file."""
        budget = "" if self.budget is None else f"-{self.budget:g}"
        seed = "" if self.seed is None else f"-seed{self.seed}"
        return f"{self.arm}{budget}{seed}-{self.target}.json"

    @property
    def title(self):
        """Its name in messages."""
        parts = [title_of(self.arm)]
        if self.budget is not None:
            parts.append(f"{100 * self.budget:g} %")
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        return ", ".join([*parts, self.target])


class Results:
    """The finished runs.

    Args:
        folder (`Path`): the output folder.
        settings (`dict`): everything besides arms, seeds and targets that runs depend on; those that an earlier start
            did not have are added.

    Raises:
        ValueError: naming the settings that differ from an earlier start into the same folder.
    """

    def __init__(self, folder, settings):
        self.folder = Path(folder)
        self._read = {}
        settings = as_json(settings)
        before = {}
        if (self.folder / SETTINGS).exists():
            before = read_json(self.folder / SETTINGS)
            common = before.keys() & settings.keys()
            now = {name: settings[name] for name in common}
            refuse_other_settings({name: before[name] for name in common}, now, self.folder)
        (self.folder / RUNS).mkdir(parents=True, exist_ok=True)
        write_json(self.folder / SETTINGS, before | settings)

    def has(self, key):
        """Whether a run is finished."""
        return (self.folder / RUNS / key.file).exists()

    def add(self, key, facts):
        """Keep a finished run."""
        write_json(self.folder / RUNS / key.file, asdict(key) | {"title": title_of(key.arm)} | facts)

    def all(self):
        """Every finished run, of this start or another, by arm, budget, seed and target."""
        for path in sorted((self.folder / RUNS).glob("*.json")):
            if path not in self._read:
                self._read[path] = read_json(path)
        runs = self._read.values()
        order = [UNTRAINED, *EVERY_ARM]

        def place(run):
            known = order.index(run["arm"]) if run["arm"] in order else len(order)
            seed = -1 if run["seed"] is None else run["seed"]
            return known, run["arm"], run["budget"] or 0.0, seed, run["target"]

        return sorted(runs, key=place)


def sources_of(pool, rows):
    """The origins of some rows of the pool, the most frequent first."""
    return dict(Counter(pool.select(rows)["source"]).most_common())
