"""`hf-gist select --streaming`: one pass over a pool that is read row by row."""

from typing import Any

from datasets import Dataset

from hf_gist.commands.flags import SelectArguments
from hf_gist.commands.select.rows import rows_file, write_lines
from hf_gist.commands.select.scoring import evaluation_rows
from hf_gist.commands.workspace import open_targets, say_skipped
from hf_gist.config.gist import GISTConfig
from hf_gist.data.reading.stream import RowStream, chunk_of, text_of
from hf_gist.gist.stream import StreamSelection, check_stream_config, select_stream
from hf_gist.training.loading import padding_collator
from hf_gist.utils.disk import write, write_json
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
    stream = RowStream(arguments.pool_source, "train_file", arguments.columns, arguments.skip_bad_rows, say)
    say_skipped(stream.skipped, "train_file")
    selection, facts = score_stream(arguments, arguments.adapter_name_or_path, config, stream)
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    path = rows_file(arguments)
    if arguments.output_format == "parquet":
        write(path, chunk_of(selection.rows).to_parquet)
    else:
        write_lines(map(text_of, selection.rows), path)
    content: dict[str, Any] = {"indices": selection.indices, "scores": selection.scores, "seen": selection.seen}
    content["pool_duplicates_dropped"] = selection.repeated
    if stream.skipped:
        content["skipped_rows"] = stream.skipped
    write_json(folder / STREAM, content | facts)
    kept = len(selection.indices)
    say(f"kept {kept:,} of {selection.seen:,} rows of the stream ({selection.unscorable:,} unscorable)")
    say(f"repeated rows left out: {selection.repeated:,}")
    say(f"selected rows: {path}")
    counts = {"gist_rows": kept, "seen": selection.seen, "unscorable": selection.unscorable}
    counts["pool_duplicates_dropped"] = selection.repeated
    return counts | {"artifacts": arguments.output_dir, "selected_rows": str(path)}


def score_stream(
    arguments: SelectArguments, adapter: str, config: GISTConfig, stream: RowStream
) -> tuple[StreamSelection, dict[str, Any]]:
    """Load the model and the targets, and score the stream; also returns the rows that were cut or left out.

    Args:
        arguments (`SelectArguments`): the flags.
        adapter (`str`): folder or Hub id of a trained adapter.
        config (`GISTConfig`): of the selection.
        stream (`RowStream`): the pool.
    """
    base = arguments.load_model()
    targets, preparer = open_targets(arguments, base, arguments.load_targets())

    def tokenized(chunk: Dataset) -> Dataset:
        rows, where = stream.next_rows(chunk)
        return preparer.rows(rows, "train_file", where, quiet=True)

    selection = select_stream(
        arguments.with_adapter(base, adapter, preparer.tokenizer),
        stream,
        targets,
        config,
        data_collator=padding_collator(preparer.tokenizer),
        tokenize=tokenized,
        eval_dataset=evaluation_rows(arguments, preparer),
    )
    preparer.say_cuts("train_file")
    return selection, preparer.facts()
