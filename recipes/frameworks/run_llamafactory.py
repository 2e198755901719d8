"""Train with LLaMA-Factory on the rows that GIST selects.

    python recipes/frameworks/run_llamafactory.py recipes/frameworks/llamafactory.yaml gist.budget=0.1

The YAML file is LLaMA-Factory's, with two more keys: `target_dataset`, a name in its `dataset_info.json`, and `gist`,
the fields of `GISTConfig`. This script must not be called `llamafactory.py`: Python would import it as the package.
"""

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args, read_args
from llamafactory.model import load_tokenizer
from llamafactory.train.tuner import run_exp

from hf_gist import GISTConfig, GISTDataSelectorCallback


ALL_ROWS = {"max_samples": None, "val_size": 0.0, "eval_dataset": None, "tokenized_path": None}
"""The target set is read whole, and not from the tokenised train dataset."""
NO_EVALUATION = {"eval_strategy": "no", "do_eval": False, "load_best_model_at_end": False}


def tokenised(args, dataset):
    """The rows of a dataset as LLaMA-Factory tokenises and labels those of the train dataset."""
    args = {**args, **ALL_ROWS, **NO_EVALUATION, "dataset": dataset}
    model_args, data_args, training_args, _, _ = get_train_args(args)
    tokenizer = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tokenizer["tokenizer"], data_args)
    return get_dataset(template, model_args, data_args, training_args, stage="sft", **tokenizer)["train_dataset"]


arguments = read_args()
config = GISTConfig(**arguments.pop("gist", {}))
targets = tokenised(arguments, arguments.pop("target_dataset"))
run_exp(arguments, callbacks=[GISTDataSelectorCallback(config, target_dataset=targets)])
