"""The section "Example rows": the text of the rows with the highest and lowest scores."""

import torch
from torch import Tensor

from hf_gist.config.gist import UNSCORED
from hf_gist.gist.selection import Selection
from hf_gist.report.examples import ExampleGroup, Examples, example_groups
from hf_gist.report.parts import RowGroup, RowText, Section
from hf_gist.report.wording import count, plural, short


KEY = "rows"
TITLE = "Example rows"


def rows_to_read(selection: Selection, examples: Examples) -> Section:
    """The best and the worst rows of each target group, next to target rows of the group.

    Args:
        selection (`Selection`): what was selected.
        examples (`Examples`): the texts of its rows.
    """
    groups = example_groups(selection)
    text = _introduction(selection, len(groups))
    if examples.missing:
        text.append(examples.missing)
    selected = torch.zeros(len(selection.scores), dtype=torch.bool)
    selected[selection.indices] = True
    return Section(KEY, TITLE, text=text, groups=[_group(selection, group, examples, selected) for group in groups])


def _introduction(selection: Selection, shown: int) -> list[str]:
    if selection.config.strategy in UNSCORED:
        return [
            "The rows were drawn without scores, so there are no best and no worst rows: these are the first ones drawn."
        ]
    return [
        "Each row belongs to the target group that it matches best. The best rows of a group have the highest scores, the "
        "worst have the lowest scores among the rows that could be scored; each is marked as selected or not.",
        f"Shown: {count(shown)} of {plural(len(selection.group_names), 'target group')}, those that most selected rows "
        "match best.",
    ]


def _group(selection: Selection, group: ExampleGroup, examples: Examples, selected: Tensor) -> RowGroup:
    if selection.config.strategy in UNSCORED:
        drawn = [_row(selection, row, examples, selected) for row in group.best]
        return RowGroup("Rows drawn", f"{plural(group.kept, 'row')} drawn.", [("First rows", drawn)])
    column = selection.config.target_group_column
    title = f"{short(column)} = {short(group.name)}" if column else f"Target row {group.name}"
    sentence = f"{plural(group.size, 'row')} match it best, {count(group.kept)} of them selected."
    targets = [
        RowText(f"target row {number}", examples.targets.get(number, []), "Its text is not available.")
        for number in group.targets
    ]
    parts = [
        ("Target", targets),
        ("Best", [_row(selection, row, examples, selected) for row in group.best]),
        ("Worst", [_row(selection, row, examples, selected) for row in group.worst]),
    ]
    return RowGroup(title, sentence, [(name, rows) for name, rows in parts if rows])


def _row(selection: Selection, row: int, examples: Examples, selected: Tensor) -> RowText:
    m = selection.measurements
    words = [f"row {row}"]
    if selection.config.strategy not in UNSCORED:
        words.append(f"score {float(selection.scores[row]):.3f}")
    words.append("selected" if selected[row] else "not selected")
    words.append(plural(int(m.label_tokens[row]), "labelled token"))
    if m.sources is not None:
        words.append(f"source {short(m.sources[row])}")
    return RowText(", ".join(words), examples.rows.get(row, []))
