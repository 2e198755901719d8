"""The section of rows to read: what stands in the rows that a score puts first and last."""

import torch

from hf_gist.config.gist import UNSCORED
from hf_gist.gist.selection import Selection
from hf_gist.report.examples import ExampleGroup, Examples, example_groups
from hf_gist.report.parts import Reading, ReadingGroup, Section
from hf_gist.report.wording import count, plural, short


KEY, TITLE = "rows", "Rows to read"


def rows_to_read(selection: Selection, examples: Examples) -> Section:
    """The best and the worst rows of each target group, beside a target."""
    groups = example_groups(selection)
    if selection.config.strategy in UNSCORED:
        text = [
            "The rows were drawn without scores, so there is no best and no worst: these are the first ones drawn."
        ]
    else:
        text = [
            "Each row belongs to the target group that it matches best. Best are the highest scores of a group, worst "
            "the lowest among the rows that could be scored; whether a row was selected stands beside it. Read the best "
            "to see what the score is after, and the worst to see what it turns away.",
            f"Shown: {count(len(groups))} of {plural(len(selection.group_names), 'target group')}, those that most "
            "selected rows match best.",
        ]
    if examples.missing:
        text.append(examples.missing)
    chosen = torch.zeros(len(selection.scores), dtype=torch.bool)
    chosen[selection.indices] = True
    return Section(KEY, TITLE, text=text, groups=[_group(selection, group, examples, chosen) for group in groups])


def _group(selection: Selection, group: ExampleGroup, examples: Examples, chosen: torch.Tensor) -> ReadingGroup:
    if selection.config.strategy in UNSCORED:
        drawn = [_row(selection, row, examples, chosen) for row in group.best]
        return ReadingGroup("Rows drawn", f"{plural(group.kept, 'row')} drawn.", [("First ones", drawn)])
    column = selection.config.target_group_column
    title = f"{short(column)} = {short(group.name)}" if column else f"Target row {group.name}"
    sentence = f"{plural(group.size, 'row')} match it best, {count(group.kept)} of them selected."
    targets = [
        Reading(f"target row {number}", examples.targets.get(number, []), "Its text is not at hand.")
        for number in group.targets
    ]
    parts = [
        ("Target", targets),
        ("Best", [_row(selection, row, examples, chosen) for row in group.best]),
        ("Worst", [_row(selection, row, examples, chosen) for row in group.worst]),
    ]
    return ReadingGroup(title, sentence, [part for part in parts if part[1]])


def _row(selection: Selection, row: int, examples: Examples, chosen: torch.Tensor) -> Reading:
    m = selection.measurements
    words = [f"row {row}"]
    if selection.config.strategy not in UNSCORED:
        words.append(f"score {float(selection.scores[row]):.3f}")
    words.append("selected" if chosen[row] else "not selected")
    words.append(plural(int(m.label_tokens[row]), "labelled token"))
    if m.sources is not None:
        words.append(f"source {short(m.sources[row])}")
    return Reading(", ".join(words), examples.rows.get(row, []), "")
