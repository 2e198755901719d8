"""GAST in `real_model.py`: every mode of the library on the same random rows."""

from typing import get_args, get_type_hints

from hf_gist import GASTConfig, GASTTrainer
from real.data import SOURCE


PREFIX = "gast_"
PLAIN = f"{PREFIX}all"
WITHOUT_SUPPORT = ("all", "random")
"""Modes that need no support samples, and are trained once for all targets."""

WHOLE_SAMPLES = {
    "whole_samples": {"mode": "topk", "group_by": "model"},
    "greedy": {"mode": "topk", "group_by": "model", "redundancy": True},
}
"""Fields of [`GASTConfig`] of the arms that draw one mask for all layers."""


def gast_modes():
    """Every mode that the library has, plain LoRA first, and those for whole samples."""
    modes = get_args(get_type_hints(GASTConfig)["mode"])
    return ["all", *(mode for mode in modes if mode != "all"), *WHOLE_SAMPLES]


def gast_arms(modes, supports):
    """The names of the arms of some modes, with the targets whose rows are support sets."""
    plain = [f"{PREFIX}{mode}" for mode in modes if mode in WITHOUT_SUPPORT]
    supported = [mode for mode in modes if mode not in WITHOUT_SUPPORT]
    return plain + [f"{PREFIX}{mode}-{support}" for support in supports for mode in supported]


def gast_title(arm):
    """The name of an arm in the table."""
    mode, _, support = arm.removeprefix(PREFIX).partition("-")
    if mode == "all":
        return "plain LoRA"
    return f"GAST, {mode}, support {support}" if support else f"GAST, {mode}"


def trainer_of(arm, data, seed):
    """The trainer of an arm and its arguments, for [`real.training.train`].

    Args:
        arm (`str`): one of [`gast_arms`].
        data (`Data`): has the support sets.
        seed (`int`): of the draws.
    """
    mode, _, support = arm.removeprefix(PREFIX).partition("-")
    found = {"trainer": GASTTrainer, "gast_config": GASTConfig(seed=seed, **WHOLE_SAMPLES.get(mode, {"mode": mode}))}
    if support:
        found["support_dataset"] = data.of_target(support).remove_columns(SOURCE)
    return found
