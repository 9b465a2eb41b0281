"""`recgpt init`: a log is looked at, and a commented config is written for it."""

from recgpt.init.config import init

__all__ = ["init"]
