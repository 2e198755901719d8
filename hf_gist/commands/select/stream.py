"""`hf-gist select --streaming`: one pass over a pool that is read row by row."""

import time
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_gist.commands.flags import SelectArguments
from hf_gist.commands.select.earlier import remove_other_rows, say_replaced
from hf_gist.commands.select.rows import rows_file, write_lines
from hf_gist.commands.select.scoring import evaluation_rows
from hf_gist.commands.workspace import open_targets, say_skipped
from hf_gist.config.gist import GISTConfig
from hf_gist.data.preparation.formats import warn_other_format
from hf_gist.data.provenance import public_name
from hf_gist.data.reading.stream import RowStream, chunk_of, text_of
from hf_gist.gist.artifacts import MANIFEST
from hf_gist.gist.stream import StreamSelection, check_stream_config, select_stream
from hf_gist.report import report_at_end
from hf_gist.report.runs.stream import STREAM_FILE
from hf_gist.training.loading import padding_collator
from hf_gist.utils.disk import write, write_json
from hf_gist.utils.terminal import named, named_path, say, say_wrapped
from hf_gist.version import __version__


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
    if (arguments.folder / MANIFEST).is_file():
        raise ValueError(
            f"`--output_dir {arguments.output_dir}` has a selection from a whole pool ({MANIFEST}), which would be reported "
            "instead of the one from the stream. Give another folder."
        )
    say_replaced(arguments.folder)
    stream = RowStream(arguments.pool_source, "train_file", arguments.columns, arguments.skip_bad_rows, say_wrapped)
    say_skipped(stream.skipped, "train_file")
    start = time.perf_counter()
    selection, facts = score_stream(arguments, arguments.adapter_name_or_path, config, stream)
    seconds = round(time.perf_counter() - start, 1)
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    path = rows_file(arguments)
    if arguments.output_format == "parquet":
        write(path, chunk_of(selection.rows).to_parquet)
    else:
        write_lines(map(text_of, selection.rows), path)
    # the report would show those of an earlier stream
    remove_other_rows(folder, path)
    content: dict[str, Any] = {"indices": selection.indices, "scores": selection.scores, **_counts(selection)}
    if stream.skipped:
        content["skipped_rows"] = stream.skipped
    content |= {"config": config.to_dict(), "columns": arguments.columns, "seconds": seconds, "hf_gist": __version__}
    content |= {"model": public_name(arguments.model_name), "adapter": public_name(arguments.adapter_name_or_path)}
    write_json(folder / STREAM_FILE, content | facts)
    return {"gist_rows": len(selection.indices), **_counts(selection)} | _report_stream(selection, arguments, path)


def _counts(selection: StreamSelection) -> dict[str, int]:
    """What became of the rows that were not selected."""
    return {
        "seen": selection.seen,
        "unscorable": selection.unscorable,
        "pool_duplicates_dropped": selection.repeated,
    }


def _report_stream(selection: StreamSelection, arguments: SelectArguments, path: Path) -> dict[str, Any]:
    """Write the report, and print the outcome; returns the paths that `--json` prints."""
    say(named("kept rows", f"{len(selection.indices):,} of {selection.seen:,} rows of the stream"))
    say(named("rows that cannot be scored", f"{selection.unscorable:,}"))
    say(named("repeated rows left out", f"{selection.repeated:,}"))
    say(f"\n{named_path('artifacts', arguments.output_dir)}")
    say(named_path("selected rows", path))
    result = {"artifacts": arguments.output_dir, "selected_rows": str(path)}
    if page := report_at_end(arguments.folder):
        result["report"] = str(page)
        say(named_path("report", page))
    return result


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
    raw = arguments.load_targets()
    targets, preparer = open_targets(arguments, base, raw)

    def tokenized(chunk: Dataset) -> Dataset:
        rows, where = stream.next_rows(chunk)
        first = "train_file" not in preparer.cuts
        if first:
            warn_other_format(raw.rows, rows, ("target_file", "train_file"))
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
    return selection, preparer.facts() | {"targets": len(targets)}
