"""Checkpointing functions of other libraries, and models that hand them what these libraries hand over."""

import inspect
from functools import WRAPPER_ASSIGNMENTS, partial, wraps
from types import MethodType

import torch
from torch.utils.checkpoint import checkpoint


# ---- Functions ----


class Offloaded(torch.autograd.Function):
    """As in Unsloth, LLaMA-Factory (`use_unsloth_gc`) and axolotl, which also move the hidden states to the host."""

    @staticmethod
    def forward(ctx, function, hidden, *args):
        with torch.no_grad():
            output = function(hidden, *args)
        ctx.save_for_backward(hidden)
        ctx.function, ctx.args = function, args
        return output

    @staticmethod
    def backward(ctx, gradient):
        (hidden,) = ctx.saved_tensors
        hidden = hidden.detach().requires_grad_(True)
        with torch.enable_grad():
            output = ctx.function(hidden, *ctx.args)
        torch.autograd.backward(output[0] if isinstance(output, tuple) else output, gradient)
        return (None, hidden.grad) + (None,) * len(ctx.args)


def llamafactory(base):
    """`get_custom_gradient_checkpointing_func` of LLaMA-Factory 0.9.5."""

    @wraps(base, assigned=(*WRAPPER_ASSIGNMENTS, "__self__"))
    def custom(func, *args, **kwargs):
        module = func.func.__self__ if isinstance(func, partial) else func.__self__
        if not any(parameter.requires_grad for parameter in module.parameters()):
            return func(*args, **kwargs)
        next(arg for arg in args if torch.is_tensor(arg) and torch.is_floating_point(arg)).requires_grad_(True)
        return base(func, *args, **kwargs)

    return custom


def axolotl(decoder_layer, *args, use_reentrant=None):
    """`hf_grad_checkpoint_offload_wrapper` of axolotl 0.19."""
    assert isinstance(decoder_layer.func.__self__, torch.nn.Module)
    return Offloaded.apply(decoder_layer, *args)


def reads_signature(function, *args, **kwargs):
    """A function that names the arguments it passes on."""
    assert "hidden_states" in inspect.signature(function).bind(*args, **kwargs).arguments
    return checkpoint(function, *args, use_reentrant=False, **kwargs)


PLAIN = partial(checkpoint, use_reentrant=False)
REENTRANT = partial(checkpoint, use_reentrant=True)


# ---- What they are handed ----


def hand_partials(block):
    """The block hands over a partial of its bound `__call__`, as in transformers up to 5.16."""
    cls = type(block)

    class Handing(cls):
        def __call__(self, *args, **kwargs):
            if self.gradient_checkpointing and self.training:
                return self._gradient_checkpointing_func(partial(super().__call__, **kwargs), *args)
            return super().__call__(*args, **kwargs)

    Handing.forward = getattr(cls.forward, "__wrapped__", cls.forward)
    block.__class__ = Handing


def hand_methods(block):
    """The block hands over its bound forward, as with ms-swift's dynamic checkpointing."""
    own = MethodType(getattr(type(block).forward, "__wrapped__", type(block).forward), block)

    def forward(self, *args, **kwargs):
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(own, *args, **kwargs)
        return own(*args, **kwargs)

    block.forward = MethodType(forward, block)


HANDING = {"installed": lambda block: None, "partial": hand_partials, "method": hand_methods}
CASES = {
    "plain": ("installed", PLAIN),
    "reentrant": ("installed", REENTRANT),
    "offloaded": ("installed", Offloaded.apply),
    "signature": ("installed", reads_signature),
    "signature, method": ("method", reads_signature),
    "llamafactory": ("partial", llamafactory(REENTRANT)),
    "llamafactory, not reentrant": ("partial", llamafactory(PLAIN)),
    "llamafactory, offloaded": ("partial", llamafactory(Offloaded.apply)),
    "llamafactory, ms-swift": ("method", llamafactory(PLAIN)),
    "axolotl": ("partial", axolotl),
}


def checkpoint_blocks(model, case):
    """Turn a case on in a peft model with a list of decoder layers."""
    how, function = CASES[case]
    base = model.get_base_model()
    for block in base.get_decoder().layers:
        HANDING[how](block)
    model.enable_input_require_grads()
    base._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=function)
    return model
