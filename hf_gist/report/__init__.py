"""A selection or a GAST training run as one line, a table, figures and an HTML page."""

from hf_gist.report.best_effort import keep_examples, not_fatal, report_at_end, report_training, withhold_text
from hf_gist.report.examples import EXAMPLES_FILE, read_examples
from hf_gist.report.page import REPORT, save_selection_figures, write_report
from hf_gist.report.text import summary_line, summary_table


__all__ = [
    "EXAMPLES_FILE",
    "REPORT",
    "keep_examples",
    "not_fatal",
    "read_examples",
    "report_at_end",
    "report_training",
    "save_selection_figures",
    "summary_line",
    "summary_table",
    "withhold_text",
    "write_report",
]
