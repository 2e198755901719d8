"""GAST against dattri-llm, an implementation by other authors that drops the worst aligned samples of each module."""

import pytest
import torch

from hf_gist.config.gast import GASTConfig
from hf_gist.functional.masking import support_rows
from tests.helpers.gast import build_model, collate, gradients_of, relative_error, train
from tests.helpers.tiny import VOCABULARY


callbacks = pytest.importorskip(
    "dattri_llm.gradient.callbacks.data_selection_callback",
    reason="dattri-llm is not installed (pip install --no-deps dattri-llm==0.1.0)",
)
hooks = pytest.importorskip("dattri_llm.gradient.hooks", reason="dattri-llm is not installed")

BATCH = 8
CONFIG = GASTConfig(mode="topk", group_by="module", rescale=False, keep=3, seed=7)


def equal_rows(count, seed):
    """Rows of one length with as many labels each, so that a mean over tokens is one over rows."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (count, 9), generator=generator).tolist()
    return [{"input_ids": row, "labels": [-100] * 3 + row[3:]} for row in ids]


def model_with(name, trained):
    """A tiny model in double precision with only the A or the B matrices trainable, or both."""
    model = build_model(name).double()
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(any(f"lora_{one}" in parameter_name for one in trained))
    return model


class OfModules(callbacks.DataSelectionCallback):
    """The scores of a module's two matrices are summed, so that both drop the same samples."""

    @staticmethod
    def compute_scores(gradient, target=None, *, scoring_kwargs=None):
        scores = callbacks.DataSelectionCallback.compute_scores(gradient, target, scoring_kwargs=scoring_kwargs)
        module = {name: name.partition(".lora_")[0] for name in scores}
        return {
            name: sum(values for other, values in scores.items() if module[other] == module[name]) for name in scores
        }


def theirs(model, batch, support, selection):
    """The gradients of a batch that dattri-llm leaves."""
    model.eval()
    linears = [n for n, m in model.named_modules() if "lora_" in n and isinstance(m, torch.nn.Linear)]
    trained = [name for name in linears if model.get_submodule(name).weight.requires_grad]
    callback = selection(
        model, target="val_loader", val_loader=[support], val_loss_fn=lambda inner, rows: inner(**rows).loss,
        selection_kwargs={"threshold": 1 - CONFIG.keep / BATCH, "threshold_mode": "bottom_fraction", "layer_wise": True},
    )  # fmt: skip
    config = hooks.HookManagerConfig(hook_types=dict.fromkeys(trained, "linear_io"))
    manager = hooks.HookManager(model, config=config, callbacks=[callback])
    manager.register()
    try:
        with manager.collect():
            model(**batch).loss.backward()
    finally:
        manager.remove()
    return gradients_of(model)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize(
    ("trained", "selection"),
    [("A", callbacks.DataSelectionCallback), ("B", callbacks.DataSelectionCallback), ("AB", OfModules)],
)
def test_the_gradients_are_those_of_dattri_llm(name, trained, selection, tmp_path):
    data = equal_rows(4 * BATCH, 0)
    support = equal_rows(12, 1)
    _, recorder = train(
        model_with(name, trained), tmp_path, data, config=CONFIG, support=support, per_device_train_batch_size=BATCH
    )
    chosen = support_rows(CONFIG.seed, len(support), 0, CONFIG.support_batch_size)
    expected = theirs(
        model_with(name, trained), recorder.batches[0], collate([support[row] for row in chosen]), selection
    )
    assert relative_error(recorder.gradients[0], expected) < 1e-9
    # they are not those of the whole batch
    stock = model_with(name, trained).eval()
    stock(**recorder.batches[0]).loss.backward()
    assert relative_error(gradients_of(stock), expected) > 0.1
