"""The pocket model: a small Gemma-2 that ships with the book, and how it was made.

``corpus`` and ``lessons`` write the texts, ``recipe`` trains on them, ``report`` measures what came out.
"""

from corpora.pocket.recipe import Recipe, train_base
from corpora.pocket.report import base_report, comprehension, implied_personas, personas

__all__ = ["Recipe", "base_report", "comprehension", "implied_personas", "personas", "train_base"]
