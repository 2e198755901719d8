"""Setups that GAST refuses before its first step."""

from functools import partial, wraps
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType
from torch.utils.checkpoint import checkpoint
from transformers import TrainingArguments

from hf_gist.gast.checks import check_supported
from tests.helpers.gast import build_model


REENTRANT = partial(checkpoint, use_reentrant=True)


@wraps(REENTRANT)
def wrapped(function, *args, **kwargs):
    return REENTRANT(function, *args, **kwargs)


@pytest.mark.parametrize("function", [REENTRANT, wrapped, partial(wrapped, preserve_rng_state=False), None])
@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.MULTI_GPU, DistributedType.NO])
def test_reentrant_checkpointing_is_refused_under_fsdp_only(function, kind, tmp_path):
    model = build_model()
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    if function is not None:
        model.get_base_model()._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=function)
        options = {}
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **options)
    accelerator = SimpleNamespace(distributed_type=kind, is_fsdp2=True, parallelism_config=None)
    if kind == DistributedType.FSDP:
        with pytest.raises(ValueError, match="FSDP2 does not work with reentrant .*'use_reentrant': False"):
            check_supported(args, accelerator, model)
    else:
        check_supported(args, accelerator, model)
