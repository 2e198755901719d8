"""Target rows without a labelled token: a warning, and an error if a whole target group is lost."""

import warnings
from collections import Counter
from collections.abc import Sequence

from hf_gist.errors import UnusableTargetsWarning


NAMED = 5
"""Groups named in the warning."""


def check_lost_targets(lost: Sequence[int], size: int, groups: Sequence[str] | None) -> None:
    """Warn of target rows that have no labelled token, which cannot be aligned with.

    Args:
        lost (`list[int]`): their row numbers.
        size (`int`): all target rows.
        groups (`list[str]`, *optional*): the target group of every row, if the groups are named by a column.

    Raises:
        ValueError: if all rows of a group are lost, naming it.
    """
    if not lost:
        return
    where = ""
    if groups is not None:
        of_lost = Counter(groups[row] for row in lost)
        gone = [name for name, count in of_lost.items() if count == groups.count(name)]
        if gone:
            raise ValueError(
                f"The target group(s) {', '.join(map(repr, gone))} of `target_group_column` have no row with a labelled "
                "token. Most often truncation cuts the answers off: raise `max_length`, or remove the group."
            )
        names = list(of_lost)
        where = f" (group {', '.join(names[:NAMED])}{' and more' if len(names) > NAMED else ''})"
    warnings.warn(
        f"{len(lost):,} of {size:,} target rows{where} have no labelled token, most often because truncation cuts their "
        "answers off, and are not used.",
        UnusableTargetsWarning,
        stacklevel=3,
    )
