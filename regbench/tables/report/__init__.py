"""Reports of measured tables: Markdown, LaTeX, CSV, JSON, figures, HTML, and a static site over all papers.

Their one input is the results dict that `regbench.tables.measure` makes (docs/architecture.md). They measure nothing.
"""

from regbench.tables.report.markdown import markdown_tables, update_page
from regbench.tables.report.site import build_site
from regbench.tables.report.write import write_report

__all__ = ["build_site", "markdown_tables", "update_page", "write_report"]
