"""The table of settings in README.md, generated from the docstring of `GISTConfig`.

`python -m tests.helpers.settings_table` writes it.
"""

from hf_gist import GISTConfig
from hf_gist.config.documentation import settings_table
from tests import ROOT


README = ROOT / "README.md"
START = "<!-- settings: python -m tests.helpers.settings_table -->\n\n"
END = "\n<!-- end of settings -->\n"
NAMES = (
    "budget",
    "target_group_column",
    "strategy",
    "score",
    "sample_from_top",
    "source_shares",
    "source_max",
    "score_layers",
    "scoring_cost",
    "sketch_dim",
    "reselect_every",
    "reselect_share",
    "scoring_tokens_per_batch",
)
"""The settings to change first; `hf-gist select --help` has all of them."""


def with_table(readme: str) -> str:
    """The text of README.md with the table as the code generates it."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return before + START + settings_table(GISTConfig, NAMES) + END + after


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
