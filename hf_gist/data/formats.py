"""Reading datasets from files and from the Hub."""

from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset

from hf_gist.data.provenance import RowSource


FILE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
"""File suffix to the name of the loader in `datasets`."""


def check_one_of(file: str | None, dataset_name: str | None, argument: str) -> None:
    """Check that exactly one of a file and a Hub id is given.

    Args:
        file (`str`, *optional*): path of a file.
        dataset_name (`str`, *optional*): Hub id.
        argument (`str`): name of the file's flag, such as `train_file`.

    Raises:
        ValueError: if none or both are given; the message has both flags.
    """
    if (file is None) == (dataset_name is None):
        other = argument.replace("file", "dataset_name").replace("train_", "")
        raise ValueError(f"Give exactly one of `--{argument}` and `--{other}`.")


def load_rows(source: RowSource, argument: str, streaming: bool = False) -> Dataset | IterableDataset:
    """A dataset from a local file or from the Hub.

    Args:
        source (`RowSource`): where to read.
        argument (`str`): name of the file's flag, for messages.
        streaming (`bool`): read row by row, without a copy on disk.

    Raises:
        ValueError: if not exactly one source is given, the file does not exist, or its format is not known; the message
            has the flag.
    """
    check_one_of(source.file, source.dataset_name, argument)
    if source.file is not None:
        return _load_file(source.file, argument, streaming)
    where = {"split": source.split, "revision": source.revision, "streaming": streaming}
    return load_dataset(source.dataset_name, source.config_name, **where)


def _load_file(file: str, argument: str, streaming: bool) -> Dataset | IterableDataset:
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"`--{argument} {file}`: no such file.")
    if path.suffix not in FILE_FORMATS:
        raise ValueError(f"`--{argument} {file}`: unknown format; use one of {', '.join(FILE_FORMATS)}.")
    return load_dataset(FILE_FORMATS[path.suffix], data_files=str(path), split="train", streaming=streaming)
