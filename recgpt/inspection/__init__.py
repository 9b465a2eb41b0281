"""`recgpt inspect`: what the weights of a run look like inside, as numbers."""

from recgpt.inspection.run import inspect

__all__ = ["inspect"]
