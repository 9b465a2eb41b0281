"""`recgpt report`: what a run learned and what came out, as one HTML page that needs nothing else."""

from recgpt.report.page import report

__all__ = ["report"]
