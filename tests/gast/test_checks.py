"""Setups that GAST refuses before its first step."""

from functools import partial, wraps
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType
from torch.utils.checkpoint import checkpoint
from transformers import TrainingArguments

from hf_gist.config.gast import GASTConfig
from hf_gist.gast.checks import check_supported
from hf_gist.trainer import GASTTrainer
from tests.helpers.gast import arguments, build_model, collate, rows


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


@pytest.mark.parametrize(("keep", "size"), [(8, 4), (4, 4), (2, 2), (1.0, 4), (0.9, 4)])
@pytest.mark.parametrize("mode", ["stochastic", "random", "topk"])
def test_a_batch_of_which_all_samples_are_kept_is_refused_before_training(keep, size, mode, tmp_path):
    with pytest.raises(ValueError, match=f"`keep={keep}` .*`per_device_train_batch_size={size}`.*set `keep` to"):
        trainer_with(tmp_path, GASTConfig(keep=keep, mode=mode), per_device_train_batch_size=size)


@pytest.mark.parametrize(
    ("keep", "size", "way"), [(8, 6, "set `keep` to at most 5"), (4, 4, "at most 3"), (0.5, 1, "")]
)
def test_a_training_set_that_is_smaller_than_keep_is_refused_before_training(keep, size, way, tmp_path):
    with pytest.raises(
        ValueError, match=f"`keep={keep}` keeps .* {size} rows, the whole training set.*{way}"
    ) as refused:
        trainer_with(tmp_path, GASTConfig(keep=keep), size, per_device_train_batch_size=16)
    assert "train on more rows" in str(refused.value) and "at most 0" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "size"),
    [({"keep": 3}, 4), ({"keep": 0.75}, 4), ({"keep": 8, "mode": "all"}, 4), ({"mode": "positive"}, 2)],
)
def test_a_batch_with_more_samples_than_are_kept_is_not_refused(options, size, tmp_path):
    trainer = trainer_with(tmp_path, GASTConfig(**options), per_device_train_batch_size=size, max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1


def trainer_with(folder, config, count=16, **changes):
    return GASTTrainer(
        model=build_model(), args=arguments(folder, **changes), train_dataset=rows(count=count), data_collator=collate,
        gast_config=config,
    )  # fmt: skip
