"""Reports: HTML files with their pictures inside, nothing loaded from elsewhere."""

from .demo import write_report
from .page import escape, html_table, picture, write_page

__all__ = ["escape", "html_table", "picture", "write_page", "write_report"]
