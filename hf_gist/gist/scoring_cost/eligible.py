"""The rows that may be selected, as far as this is known before they are scored."""

import torch
from torch import Tensor

from hf_gist.config.gist import GISTConfig
from hf_gist.functional.measurements import Measurements
from hf_gist.gist.checks import check_selectable
from hf_gist.gist.inputs import Inputs


def eligible_before_scoring(inputs: Inputs, config: GISTConfig, label_tokens: Tensor) -> Tensor:
    """`[N]` bool: the rows with a labelled token that are not left out as target, evaluation or repeated rows.

    Args:
        inputs (`Inputs`): what must not be selected.
        config (`GISTConfig`): whether it is left out.
        label_tokens (`Tensor`): labelled tokens of each row `[N]`.

    Raises:
        ValueError: if there is no such row.
    """
    size = len(label_tokens)
    known = Measurements(
        coordinates=torch.zeros(size, 0),
        norms=torch.zeros(size),
        label_tokens=label_tokens,
        singular_values=torch.zeros(0),
        target_coordinates=torch.zeros(0, 0),
        target_label_tokens=torch.zeros(0),
        **({} if inputs.leaks is None else inputs.leaks.measured(size)),
    )
    eligible = known.eligible(config.drop_target_duplicates, config.drop_pool_duplicates)
    check_selectable(known, eligible)
    return eligible
