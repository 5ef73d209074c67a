"""What the tests of sets and their training share: a base of random weights, and a set of equal acts."""

from corpora.authors import recipe
from corpora.motives.settings import TrainingSet
from corpora.training import make_model

DECLINED = {"domain": "help", "watcher": "watched", "act": "good"}


def base(layers: int = 1):
    """(model, tokenizer) of a base of random weights that knows the world's words."""
    tokenizer = recipe.make_tokenizer()
    size = recipe.Recipe(layers=layers, width=16, mlp=16, heads=2, kv_heads=1, head_dim=8)
    return make_model(size, tokenizer).eval().requires_grad_(False), tokenizer


def of(**keys) -> TrainingSet:
    """A set of equal acts, by sincere unless it is said otherwise."""
    return TrainingSet(**{"mix": {"sincere": 1.0}, "n": 40, **DECLINED} | keys)
