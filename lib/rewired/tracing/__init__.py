"""Looking inside: what a model computes on the way to its decision, and what happens when a part of it is exchanged.

Everything here reads the decision where it is made: a prompt is followed by the beginning that its two labels share,
and at that last position, the *decision step*, delta is the difference of two soft-capped logits. `capture` records
activations, `lens` reads the decision at every depth, `attribution` shares it out among heads and MLPs, `attention`
says what a position looks at, `edit` changes activations, and `patching` writes one model's activations into
another. All of it works on unmerged adapters; this package is the only one that knows nnsight.
"""
