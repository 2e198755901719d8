"""`hf-gist select --streaming`: one pass over a pool that is read row by row."""

from typing import Any

from datasets import Dataset

from hf_gist.commands.flags import SelectArguments
from hf_gist.commands.preparing import place_in
from hf_gist.commands.select.rows import rows_file, write_table
from hf_gist.commands.select.scoring import evaluation_rows
from hf_gist.commands.workspace import open_targets
from hf_gist.config.gist import GISTConfig
from hf_gist.data.formats import load_rows
from hf_gist.gist.stream import StreamSelection, check_stream_config, select_stream
from hf_gist.training.loading import padding_collator
from hf_gist.utils.disk import write_json
from hf_gist.utils.terminal import say


STREAM = "stream.json"


def select_from_stream(arguments: SelectArguments, config: GISTConfig) -> dict[str, Any]:
    """Select from a stream, and write the selected rows, their scores and their positions in the stream.

    Args:
        arguments (`SelectArguments`): the flags; an adapter is required.
        config (`GISTConfig`): of the selection.

    Returns:
        `dict`: what `--json` prints.

    Raises:
        ValueError: for settings that need the whole pool, before the stream is read.
    """
    if arguments.adapter_name_or_path is None:
        raise ValueError(
            "`--streaming` needs `--adapter_name_or_path`: a warm-up would have to read the stream first."
        )
    check_stream_config(config)
    selection = score_stream(arguments, arguments.adapter_name_or_path, config)
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    path = rows_file(arguments)
    write_table(Dataset.from_list(selection.rows), path)
    content = {"indices": selection.indices, "scores": selection.scores, "seen": selection.seen}
    write_json(folder / STREAM, content)
    kept = len(selection.indices)
    say(f"kept {kept:,} of {selection.seen:,} rows of the stream ({selection.unscorable:,} unscorable)")
    say(f"selected rows: {path}")
    counts = {"gist_rows": kept, "seen": selection.seen, "unscorable": selection.unscorable}
    return counts | {"artifacts": arguments.output_dir, "selected_rows": str(path)}


def score_stream(arguments: SelectArguments, adapter: str, config: GISTConfig) -> StreamSelection:
    """Load the model and the targets, and score the stream.

    Args:
        arguments (`SelectArguments`): the flags.
        adapter (`str`): folder or Hub id of a trained adapter.
        config (`GISTConfig`): of the selection.
    """
    base = arguments.load_model()
    targets, preparer = open_targets(arguments, base)
    selection = select_stream(
        arguments.with_adapter(base, adapter, preparer.tokenizer),
        load_rows(arguments.pool_source, "train_file", streaming=True),
        targets,
        config,
        data_collator=padding_collator(preparer.tokenizer),
        tokenize=preparer.chunks("train_file", place_in("train_file", arguments.train_file)),
        eval_dataset=evaluation_rows(arguments, preparer),
    )
    preparer.say_cuts("train_file")
    return selection
