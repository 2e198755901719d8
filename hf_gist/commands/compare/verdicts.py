"""One verdict for each measure of each test set: which method is best, and what is within noise."""

import math
from collections.abc import Sequence

from hf_gist.commands.compare.arms import ARMS, RANDOM, UNTRAINED
from hf_gist.commands.compare.estimates import Column, Estimate, Runs, columns_of, difference, estimate, of_method
from hf_gist.commands.testing.sets import LOSS


ERRORS = 2
"""A difference of more standard errors than this is not within noise."""

FEWEST_ROWS = 10
"""With fewer test rows, a standard error over them says too little."""


def verdicts(runs: Runs) -> list[str]:
    """A verdict for each measure of each test set; none as long as no method is trained.

    Args:
        runs (`Runs`): all runs.
    """
    if all(run["method"] == UNTRAINED for run in runs):
        return []
    return [Verdict(runs, column).text() for column in columns_of(runs)]


class Verdict:
    """Compares the methods in one measure on one test set.

    Every method is compared with random rows by [`Estimate.noise`] of the difference. With many methods, one in about
    twenty that are worth the same as random rows will seem to differ.

    Args:
        runs (`Runs`): all runs.
        column (`Column`): measure and test set.
    """

    def __init__(self, runs: Runs, column: Column) -> None:
        self.runs = runs
        self.column = column
        self.methods = list(dict.fromkeys(run["method"] for run in runs))
        trained = [method for method in self.methods if method != UNTRAINED]
        self.trained = trained
        self.best = max(trained, key=self._goodness)
        self.tied = [method for method in trained if self._goodness(method) == self._goodness(self.best)]

    def text(self) -> str:
        """The verdict, in a few sentences."""
        sentences = [self._best(), self._against_random(), self._close_to_best(), self._untrained(), self._seeds()]
        return " ".join(sentence for sentence in sentences if sentence)

    def headline(self) -> str:
        """[`Verdict.numbers`] as an answer to the question whether the best method is better than no training."""
        if UNTRAINED not in self.methods:
            return self.numbers()
        found = self._difference(UNTRAINED, self.best)
        better = found is not None and self._gain(found) < 0
        return f"{'Yes' if better else 'No'}: {self.numbers()}"

    def numbers(self) -> str:
        """One sentence for a reader who sees nothing else: the best method, the untrained model and random rows."""
        text = (
            f"{self.column.title} {self._number(self._mean(self.best))} with the best method, {_titles([self.best])}"
        )
        if UNTRAINED in self.methods:
            text += f"; {self._number(self._mean(UNTRAINED))} before training"
        against = None if self.best == RANDOM else self._difference(self.best, RANDOM)
        if against is None:
            return f"{text}."
        how = "a clear difference" if self._is_clear(against) and not _unclear(against) else "which may be noise"
        return f"{text}; {self._number(self._mean(RANDOM))} with random rows, {how}."

    # ---- Sentences ----

    def _best(self) -> str:
        word = "lowest" if self.column.sign < 0 else "highest"
        value = self._value(self.best)
        if len(self.trained) > 1 and len(self.tied) == len(self.trained):
            return f"{self.column.title}: the same for all trained models, {value}."
        text = f"{self.column.title}: {word} for {_titles(self.tied)}, {value}"
        if RANDOM in self.tied:
            return f"{text}."
        found = self._difference(self.best, RANDOM)
        if found is None:
            return f"{text}; without random rows of the same seed, nothing says what the selection is worth."
        return f"{text}, {self._apart(found)} random rows."

    def _against_random(self) -> str:
        found = {method: self._difference(method, RANDOM) for method in self.trained if method != RANDOM}
        known = {method: one for method, one in found.items() if one is not None}
        if not known:
            return ""
        unclear = {m: _unclear(one) for m, one in known.items() if _unclear(one) and math.isfinite(one.mean)}
        if len(unclear) == len(known):
            return next(iter(unclear.values()))
        clear = {m: self._gain(one) for m, one in known.items() if m not in unclear and self._is_clear(one)}
        parts = [
            ("better", [method for method, gain in clear.items() if gain > 0]),
            ("worse", [method for method, gain in clear.items() if gain < 0]),
            ("not finite", [method for method, one in known.items() if not math.isfinite(one.mean)]),
        ]
        named = [*unclear, *(method for _, methods in parts for method in methods)]
        if not named:
            return "No method differs from random rows by more than two standard errors."
        parts.append(("within noise", [method for method in known if method not in named]))
        parts.append(("not known", list(unclear)))
        listed = "; ".join(f"{word}: {_titles(methods)}" for word, methods in parts if methods)
        return f"Against random rows (two standard errors) {listed}."

    def _close_to_best(self) -> str:
        """Methods that may be as good as the best one; random rows are in the sentence on them."""
        if self.best == RANDOM:
            return ""
        others = [method for method in self.trained if method not in (*self.tied, RANDOM)]
        found = {method: self._difference(method, self.best) for method in others}
        close = [method for method, one in found.items() if one is not None and self._is_close(one)]
        return f"Within two standard errors of the best: {_titles(close)}." if close else ""

    def _untrained(self) -> str:
        if UNTRAINED not in self.methods:
            return ""
        value = self._value(UNTRAINED)
        found = self._difference(UNTRAINED, self.best)
        if found is None:
            return f"The untrained model: {value}."
        within = ", which is within noise" if found.mean and self._is_close(found) else ""
        if self._gain(found) > 0:
            return f"The untrained model is better than every trained one: {value}, {self._apart(found)} the best{within}."
        return f"The untrained model: {value}, {self._apart(found)} the best{within}."

    def _seeds(self) -> str:
        if len(of_method(self.runs, self.best)) > 1:
            return ""
        return "With one seed, the errors do not include what differs between seeds."

    # ---- Numbers ----

    def _mean(self, method: str) -> float:
        return estimate(of_method(self.runs, method), self.column).mean

    def _goodness(self, method: str) -> float:
        mean = self.column.sign * self._mean(method)
        # a training that diverged is the worst
        return mean if math.isfinite(mean) else -math.inf

    def _difference(self, method: str, other: str) -> Estimate | None:
        return difference(of_method(self.runs, method), of_method(self.runs, other), self.column)

    def _gain(self, found: Estimate) -> float:
        return self.column.sign * found.mean

    @staticmethod
    def _is_close(found: Estimate) -> bool:
        """Whether a difference is within noise, as far as that can be said."""
        return not _unclear(found) and math.isfinite(found.mean) and not Verdict._is_clear(found)

    @staticmethod
    def _is_clear(found: Estimate) -> bool:
        """Whether a difference is more than noise; one that is not a number is not."""
        return found.noise is not None and abs(found.mean) > ERRORS * found.noise

    def _number(self, value: float) -> str:
        return f"{value:.4f}" if self.column.measure == LOSS else f"{value:.3f}"

    def _value(self, method: str) -> str:
        found = estimate(of_method(self.runs, method), self.column)
        return self._number(found.mean) + self._error(found)

    def _error(self, found: Estimate) -> str:
        return "" if found.noise is None else f" ± {self._number(found.noise)}"

    def _apart(self, found: Estimate) -> str:
        if found.mean == 0:
            return "the same as"
        side = "above" if found.mean > 0 else "below"
        return f"{self._number(abs(found.mean))}{self._error(found)} {side}"


def _unclear(found: Estimate) -> str:
    """Why nothing can be said about a difference; empty if something can."""
    if found.rows is not None and found.rows < FEWEST_ROWS:
        return f"{found.rows} test row{'s are' if found.rows > 1 else ' is'} too few to tell methods apart."
    if found.noise is None:
        return "With one seed, and without the outcomes of single rows, nothing says what is within noise."
    return ""


def _title(method: str) -> str:
    return ARMS[method].title


def _titles(methods: Sequence[str]) -> str:
    """Titles in a list, those that have a comma in quotation marks."""
    titles = map(_title, methods)
    return ", ".join(f'"{title}"' if "," in title else title for title in titles)
