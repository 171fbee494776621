"""A selection as one self-contained HTML page (needs the extra ``report``)."""

from .page import thumbnails, write_report

__all__ = ["thumbnails", "write_report"]
