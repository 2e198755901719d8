"""GAST in `real_model.py`: every mode of the library on the same random rows."""

from typing import get_args, get_type_hints

from hf_gist import GASTConfig, GASTTrainer
from real.data import SOURCE


PREFIX = "gast_"
PLAIN = f"{PREFIX}all"
WITHOUT_SUPPORT = ("all", "random")
"""Modes that need no support samples, and are trained once for all targets."""


def gast_modes():
    """Every mode that the library has, plain LoRA first."""
    modes = get_args(get_type_hints(GASTConfig)["mode"])
    return ["all", *(mode for mode in modes if mode != "all")]


def gast_arms(supports):
    """The names of all arms, with the targets whose rows are support sets."""
    plain = [f"{PREFIX}{mode}" for mode in gast_modes() if mode in WITHOUT_SUPPORT]
    supported = [mode for mode in gast_modes() if mode not in WITHOUT_SUPPORT]
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
    found = {"trainer": GASTTrainer, "gast_config": GASTConfig(mode=mode, seed=seed)}
    if support:
        found["support_dataset"] = data.of_target(support).remove_columns(SOURCE)
    return found
