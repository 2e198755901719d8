"""Make `recipes/tutorial.ipynb` from the cells of `recipes/tutorial.py`, with the output of a run.

    pip install nbclient ipykernel
    hf-gist demo && python .github/assets/notebook.py

The first comment lines of a cell become text. Progress bars and messages on stderr are printed here and not kept.
`--check` compares the notebook with the tutorial and runs nothing.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "recipes" / "tutorial.py"
NOTEBOOK = TUTORIAL.with_suffix(".ipynb")
MARK = "# %% "
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cells_of(text: str) -> list[tuple[str, str]]:
    """The cells of a script as pairs of kind (`"markdown"` or `"code"`) and source.

    Args:
        text (`str`): a docstring, then cells that begin with a line `# %% TITLE`.
    """
    docstring, *parts = re.split(f"^{re.escape(MARK)}", text, flags=re.MULTILINE)
    title, _, body = docstring.strip().strip('"').strip().partition("\n")
    cells = [("markdown", f"# {title}\n{body}".strip())]
    for part in parts:
        title, _, body = part.partition("\n")
        comments, code = _split_comments(body.strip("\n").split("\n"))
        cells.append(("markdown", "\n\n".join(filter(None, [f"## {title}", comments]))))
        cells.append(("code", code))
    return cells


def _split_comments(lines: list[str]) -> tuple[str, str]:
    """The comment lines at the top as text, and the others as code."""
    at = next((number for number, line in enumerate(lines) if not line.startswith("# ")), len(lines))
    return " ".join(line[2:] for line in lines[:at]), "\n".join(lines[at:])


def cells_of_notebook(path: Path) -> list[tuple[str, str]]:
    """The cells of a notebook as [`cells_of`] gives them."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


def new_notebook(cells: list[tuple[str, str]]) -> Any:
    """A notebook of these cells without output; the ids of its cells are their numbers."""
    from nbformat import v4

    make = {"markdown": v4.new_markdown_cell, "code": v4.new_code_cell}
    made = [make[kind](source, id=f"cell-{number}") for number, (kind, source) in enumerate(cells)]
    return v4.new_notebook(cells=made, metadata=KERNEL)


def execute(notebook: Any, folder: Path) -> None:
    """Run all cells in a folder; what they write to stdout is kept, the rest is printed.

    Args:
        notebook: of [`new_notebook`].
        folder (`Path`): the working directory.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    from nbclient import NotebookClient

    client = NotebookClient(notebook, timeout=None, record_timing=False, resources={"metadata": {"path": str(folder)}})
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _is_kept(output)]
    notebook.metadata = KERNEL


def _is_kept(output: Any) -> bool:
    if output.output_type == "stream" and output.name == "stdout":
        return True
    sys.stderr.write(f"not kept: {output.get('text', output.output_type)}\n")
    return False


def main() -> None:
    """Make or check the notebook."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(), help="The folder that gist_demo/ is in.")
    parser.add_argument("--check", action="store_true", help="Only compare the cells; run and write nothing.")
    flags = parser.parse_args()
    cells = cells_of(TUTORIAL.read_text(encoding="utf-8"))
    if flags.check:
        if cells_of_notebook(NOTEBOOK) != cells:
            sys.exit(f"{NOTEBOOK} differs from {TUTORIAL}: make it again.")
        return
    import nbformat

    notebook = new_notebook(cells)
    execute(notebook, flags.folder.resolve())
    NOTEBOOK.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
