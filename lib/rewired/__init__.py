"""Rewired? What moral fine-tuning changes inside a language model: the thin library behind the book.

>>> import rewired
>>> P = rewired.start("pocket")          # a checked, frozen profile; threads pinned, logging quiet
"""

from rewired.errors import RewiredError
from rewired.profiles import load, output_dir, read_table, results_dir, start, write_table

__all__ = ["RewiredError", "load", "output_dir", "read_table", "results_dir", "start", "write_table"]
__version__ = "0.1.0"
