"""Fine-tune a LoRA with TRL's `SFTTrainer`: plain, on the rows that GIST selects, masked by GAST, or both.

    accelerate launch --config_file recipes/accelerate/single_gpu.yaml recipes/run_sft.py \
        --config recipes/sft/gist.yaml --learning_rate 1e-4 --gist.budget 0.1

Every key of the YAML file is a flag, and flags override the file. The keys are those of `SFTConfig` and `ModelConfig`
of TRL, those of `ScriptArguments` below, and the mappings `gist` and `gast`, which switch the methods on and have the
fields of `GISTConfig` and `GASTConfig`. `--help` lists all of them.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from generation import PREDICTIONS, AnswerTest
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import is_torch_bf16_gpu_available, logging
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config, get_quantization_config

from hf_gist import GASTConfig, GISTConfig, GISTDataSelectorCallback, Selection
from hf_gist.config.base import BaseConfig
from hf_gist.config.documentation import setting_help
from hf_gist.config.parsing import parse_yaml
from hf_gist.data.provenance import RowSource, describe_source, digests_of, public_name
from hf_gist.data.reading.load import load_rows
from hf_gist.trainer import GASTSFTTrainer
from hf_gist.training.loading import positions
from hf_gist.utils.disk import write_json


METHODS: dict[str, type[BaseConfig]] = {"gist": GISTConfig, "gast": GASTConfig}

logger = logging.get_logger(__name__)


def _help(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class ScriptArguments:
    """The data of a run. Files are JSONL, JSON, Parquet or CSV."""

    train_file: str | None = _help("Training rows: messages, prompt and completion, or text. The pool for GIST.")
    dataset_name: str | None = _help("Training rows on the Hub, instead of a file.")
    dataset_split: str = _help("Split of `dataset_name`.", "train")
    dataset_config_name: str | None = _help("Configuration of `dataset_name`, if it has several.")
    selected_rows: str | None = _help("Folder of `hf-gist select`: train on the rows of `train_file` selected there.")
    target_file: str | None = _help("Target rows for GIST.")
    target_dataset_name: str | None = _help("Target rows on the Hub, instead of a file.")
    target_dataset_split: str = _help("Split of `target_dataset_name`.", "train")
    target_dataset_config_name: str | None = _help("Configuration of `target_dataset_name`, if it has several.")
    support_file: str | None = _help("Support rows for GAST; by default the training rows, as in the paper.")
    eval_file: str | None = _help("Evaluation rows: their loss is reported, and GIST never selects them.")
    test_file: str | None = _help(
        "Test rows: the model generates answers to them after training, and `metric` is reported."
    )
    metric: str | None = _help("gsm8k_exact_match, choice_accuracy, or the folder of your own metric.")
    choices: list[str] | None = _help("Labels for choice_accuracy; by default the letters.")
    max_new_tokens: int = _help("Longest answer to a test row, in tokens.", 256)


@dataclass(frozen=True)
class Run:
    """All settings of the run."""

    script: ScriptArguments
    training: SFTConfig
    model: ModelConfig
    gist: GISTConfig | None
    gast: GASTConfig | None


@dataclass(frozen=True)
class Data:
    """All rows that were read."""

    train: Dataset
    targets: Dataset | None
    support: Dataset | None
    evaluation: Dataset | None
    test_rows: Dataset | None
    test: AnswerTest | None


# ---- Settings ----


def _yaml_value(text: str) -> Any:
    try:
        return parse_yaml(f"value: {text}")["value"]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a YAML value") from error


def build_parser() -> TrlParser:
    """All flags."""
    parser = TrlParser(
        (ScriptArguments, SFTConfig, ModelConfig), description=__doc__.splitlines()[0], allow_abbrev=False,
        usage="run_sft.py --config FILE [--KEY VALUE ...] [--gist.FIELD VALUE ...] [--gast.FIELD VALUE ...]",
    )  # fmt: skip
    parser.add_argument("--config", help="YAML file with any of the flags; flags override it.")
    for method, config in METHODS.items():
        group = parser.add_argument_group(f"{method}: any of them switches {method.upper()} on")
        texts = setting_help(config)
        for one in dataclasses.fields(config):
            name = f"{method}.{one.name}"
            text = f"{texts[one.name]} Default: {one.default}.".replace("%", "%%")
            group.add_argument(f"--{name}", dest=name, type=_yaml_value, default=argparse.SUPPRESS, help=text)
    if not is_torch_bf16_gpu_available():
        # TRL's default is bf16
        parser.set_defaults_with_config(bf16=False)
    return parser


def read_config(path: str) -> dict[str, Any]:
    """The YAML file, with `gist: {budget: 1}` as `gist.budget: 1`, and `gist: {}` for a method that is present.

    Raises:
        ValueError: naming the file and the error in it.
    """
    try:
        values = parse_yaml(Path(path).read_text(encoding="utf-8"), f"`--config {path}`")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"`--config {path}` cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"`--config {path}` is not a mapping of names to values.")
    for method in METHODS.keys() & values.keys():
        fields = {} if values[method] is None else values[method]
        if not isinstance(fields, dict):
            raise ValueError(f"`--config {path}`: `{method}` must be a mapping of fields to values, got {fields!r}.")
        values[method] = {}
        values |= {f"{method}.{name}": value for name, value in fields.items()}
    return values


def _method(name: str, named: bool, given: dict[str, Any]) -> BaseConfig | None:
    fields = {key.removeprefix(f"{name}."): value for key, value in given.items() if key.startswith(f"{name}.")}
    return METHODS[name].from_dict(fields) if named or fields else None


def parse_arguments(argv: Sequence[str] | None = None) -> Run:
    """Merge the file and the flags.

    Raises:
        ValueError: for unknown keys and invalid values, by name.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    path = first.parse_known_args(argv)[0].config
    values = read_config(path) if path else {}
    named = {method for method in METHODS if values.pop(method, None) is not None}
    parser = build_parser()
    unknown = [item.removeprefix("--") for item in parser.set_defaults_with_config(**values)[::2]]
    if unknown:
        raise ValueError(f"`--config {path}`: unknown key(s) {', '.join(unknown)}; `--help` lists all keys.")
    script, training, model, rest = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    run = Run(script, training, model, *(_method(name, name in named, vars(rest)) for name in METHODS))
    check_arguments(run)
    return run


def check_arguments(run: Run) -> None:
    """Check for settings that contradict each other or would have no effect.

    Raises:
        ValueError: naming the arguments.
    """
    script = run.script
    has_targets = bool(script.target_file or script.target_dataset_name)
    problems = [
        (run.model.model_name_or_path is None, "`model_name_or_path` is missing"),
        (run.gist and not has_targets, "GIST needs `target_file` or `target_dataset_name`"),
        (has_targets and not run.gist, "target rows are for GIST, which is off; add `gist:`"),
        (script.support_file and not run.gast, "`support_file` is for GAST, which is off; add `gast:`"),
        (script.selected_rows and run.gist, "`selected_rows` and `gist:` both select the rows; use one of them"),
        (bool(script.test_file) != bool(script.metric), "`test_file` and `metric` must be given together"),
        (
            script.choices and Path(script.metric or "").name != "choice_accuracy",
            "`choices` are for `metric: choice_accuracy`",
        ),
        ((run.gist or run.gast) and not run.model.use_peft, "GIST and GAST need LoRA; set `use_peft: true`"),
        (script.max_new_tokens < 1, f"`max_new_tokens` must be at least 1, got {script.max_new_tokens}"),
    ]
    found = [text for wrong, text in problems if wrong]
    if found:
        raise ValueError("; ".join(found) + ".")


# ---- Data ----


def selected_rows(folder: str, rows: Dataset, train_file: str | None) -> list[int]:
    """Row numbers of a selection, possibly made with another model.

    Raises:
        ValueError: if the rows are not the scored rows.
    """
    selection = Selection.load(folder)
    known = digests_of(selection.manifest.get("train_dataset", {}))
    found = [] if train_file is None else digests_of(describe_source(RowSource(train_file), {}))
    if len(selection.scores) != len(rows) or (known and found and known != found):
        raise ValueError(
            f"`selected_rows: {folder}` was made from another pool: {len(selection.scores)} rows there, {len(rows)} rows "
            f"in {train_file or 'the dataset'}, or the same number with other contents. Give the pool of that selection."
        )
    if not (known and found):
        logger.warning(
            f"Only the number of rows of {folder} could be compared with the pool: its manifest has no file digest."
        )
    return selection.indices


def read_data(run: Run) -> Data:
    """Read all files, and check what can be checked without a model."""
    script = run.script

    def optional(argument: str) -> Dataset | None:
        file = getattr(script, argument)
        return load_rows(RowSource(file), argument) if file else None

    train = load_rows(
        RowSource(script.train_file, script.dataset_name, script.dataset_split, script.dataset_config_name),
        "train_file",
    )
    if script.selected_rows is not None:
        train = train.select(selected_rows(script.selected_rows, train, script.train_file))
    targets = None
    if run.gist is not None:
        targets = load_rows(
            RowSource(
                script.target_file,
                script.target_dataset_name,
                script.target_dataset_split,
                script.target_dataset_config_name,
            ),
            "target_file",
        )
    test_rows = optional("test_file")
    test = None
    if test_rows is not None:
        test = AnswerTest(test_rows, script.metric, script.choices, script.max_new_tokens)
    return Data(train, targets, optional("support_file"), optional("eval_file"), test_rows, test)


# ---- The run ----


def load_tokenizer(run: Run) -> PreTrainedTokenizerBase:
    """The tokenizer of the model."""
    return AutoTokenizer.from_pretrained(
        run.model.model_name_or_path,
        revision=run.model.model_revision,
        trust_remote_code=run.training.trust_remote_code,
    )


def build_trainer(run: Run, data: Data) -> SFTTrainer:
    """The trainer, with GIST and GAST if they are switched on."""
    training = run.training
    callback = None
    gast = {}
    training.model_init_kwargs = {
        "revision": run.model.model_revision,
        "attn_implementation": run.model.attn_implementation,
        "dtype": run.model.dtype,
    } | (training.model_init_kwargs or {})
    if run.gist is not None:
        callback = GISTDataSelectorCallback(run.gist, data.targets)
    if run.gast is not None:
        gast = {"gast_config": run.gast, "support_dataset": data.support}
    trainer = (GASTSFTTrainer if gast else SFTTrainer)(
        model=run.model.model_name_or_path,
        args=training,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        processing_class=load_tokenizer(run),
        quantization_config=get_quantization_config(run.model),
        peft_config=get_peft_config(run.model),
        callbacks=[callback] if callback else [],
        **gast,
    )
    if callback is not None:
        # GIST must not select them; the callback prepares them as the trainer does its rows
        sets = {"eval_file": data.evaluation, "test_file": data.test_rows}
        callback.eval_dataset = {name: rows for name, rows in sets.items() if rows}
    return trainer


def save_recipe(run: Run) -> None:
    """Write the settings to `recipe.json` next to the adapter; the training arguments are in `training_args.bin`."""
    parts = {
        name: {key: public_name(value) if isinstance(value, str) else value for key, value in vars(part).items()}
        for name, part in (("script", run.script), ("model", run.model))
    }
    methods = {name: config.to_dict() for name in METHODS if (config := getattr(run, name)) is not None}
    write_json(Path(run.training.output_dir) / "recipe.json", parts | methods)


def train_and_evaluate(run: Run, data: Data) -> SFTTrainer:
    """Train, save, evaluate, push: in this order, so that an error in the evaluation does not lose the model."""
    trainer = build_trainer(run, data)
    if run.training.push_to_hub and trainer.is_world_process_zero():
        # of an earlier run: the whole folder is uploaded
        Path(run.training.output_dir, PREDICTIONS).unlink(missing_ok=True)
    prompts = data.test.prompts(trainer.processing_class, positions(trainer.model)) if data.test else None
    metrics = trainer.train(resume_from_checkpoint=run.training.resume_from_checkpoint).metrics
    trainer.save_model()
    if trainer.is_world_process_zero():
        save_recipe(run)
    results = {"train": metrics}
    if data.evaluation is not None:
        results["eval"] = trainer.evaluate()
    if data.test is not None:
        results["test"] = data.test.run(trainer, prompts)
    for split, values in results.items():
        trainer.log_metrics(split, values)
        trainer.save_metrics(split, values)
    try:
        if run.training.push_to_hub:
            name = run.script.dataset_name
            # others cannot load a local folder as a dataset
            trainer.push_to_hub(dataset_name=name if public_name(name) == name else None)
    finally:
        # after the push, which uploads the whole folder: answers to the test set should not be published
        if data.test is not None and trainer.is_world_process_zero():
            data.test.save(run.training.output_dir)
    return trainer


def main(argv: Sequence[str] | None = None) -> SFTTrainer:
    """Entry point.

    Returns:
        `SFTTrainer`: the trainer after its run.

    Raises:
        SystemExit: for errors in the arguments or the files, with a message of one line.
    """
    try:
        run = parse_arguments(argv)
        data = read_data(run)
    except (ValueError, OSError) as error:
        sys.exit(f"run_sft.py: error: {error}")
    return train_and_evaluate(run, data)


if __name__ == "__main__":
    main().accelerator.end_training()
