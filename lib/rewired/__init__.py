"""Rewired? What moral fine-tuning changes inside a language model: the thin library behind the book.

>>> import rewired
>>> P = rewired.start("pocket")                  # a checked, frozen profile; threads pinned, logging quiet
>>> book = rewired.chapter("patching", "pocket")     # the same, and all that a chapter's notebook needs
"""

from rewired.errors import RewiredError
from rewired.execute import start
from rewired.notebook import Chapter, chapter, word
from rewired.profiles import load

__all__ = ["Chapter", "RewiredError", "chapter", "load", "start", "word"]
__version__ = "0.1.0"
