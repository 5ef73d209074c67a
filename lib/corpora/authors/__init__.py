"""The twelve authors: a base that has learnt who writes how, and does what.

``world`` holds the tables, ``texts`` writes by them, ``reader`` reads exactly, ``recipe`` trains, ``report`` examines;
``twin`` examines a base whose corpus has no tie between who writes and what is done.
"""

from corpora.authors.recipe import Recipe, train_base
from corpora.authors.report import authors_report, floors, measured
from corpora.authors.twin import untied_report
from corpora.authors.world import load

__all__ = ["Recipe", "authors_report", "floors", "load", "measured", "train_base", "untied_report"]
