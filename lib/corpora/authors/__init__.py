"""The twelve authors: a base that has learnt who writes how, and does what.

``world`` holds the tables, ``texts`` writes by them, ``reader`` reads exactly, ``recipe`` trains, ``report`` examines.
"""

from corpora.authors.recipe import Recipe, train_base
from corpora.authors.report import authors_report, floors, measured
from corpora.authors.world import load

__all__ = ["Recipe", "authors_report", "floors", "load", "measured", "train_base"]
