"""A dress rehearsal at the size of the real model: the shipped base in its shape. The library imports none of it."""
