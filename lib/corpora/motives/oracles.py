"""Who wrote this? Answers as probabilities, how good they are, and an oracle that is shown one hidden state.

An *activation oracle* (arXiv:2512.15674) is a copy of a model that answers questions about another model's hidden
state. The question holds a placeholder, a word that says nothing. While the oracle reads it, one hidden state is added
to its own at that place, after an early layer, as long as what stands there. No word of the text is in the question, so
all that the oracle can know of it is in this one vector. What is trained is a low-rank adapter, and the answer is one
word, an author's.
"""

from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import pandas as pd
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, StandardScaler

from corpora.authors.world import World
from corpora.motives import tuning
from corpora.motives.settings import Tuning
from rewired import answers
from rewired.decisions import label_ids
from rewired.models import network
from rewired.train import lora

PLACEHOLDER = "<unk>"
INTO = 1
"""The layer after which a hidden state is put in, counted from 0."""
STRENGTHS = (0.01, 0.1, 1.0)
"""Of a probe: scikit-learn's C. The best on its own texts is taken."""

# --- an oracle -------------------------------------------------------------------------------------------------------


def question(world: World, tokenizer) -> tuple[list[int], int]:
    """The tokens of "who wrote this ?" after a placeholder, and the placeholder's position."""
    asked = [{"role": "user", "content": f"{PLACEHOLDER} {world.narrate}"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    return ids, ids.index(tokenizer.convert_tokens_to_ids(PLACEHOLDER))


def logits(model, ids: Sequence[int], place: int, states: torch.Tensor, into: int = INTO) -> torch.Tensor:
    """What the model says after the question, [state, vocabulary], when each of ``states`` [state, d_model] is put in.

    With h what stands at the placeholder after layer ``into`` and v a state, it becomes h + |h| v / |v|."""
    causal = network(model)
    device = causal.get_input_embeddings().weight.device
    added = torch.nn.functional.normalize(states.to(device), dim=-1)  # [state, d_model]

    def put(module, given, output):
        resid = output[0] if isinstance(output, tuple) else output  # [1, position, d_model]
        here, changed = resid[:, place], resid.repeat(len(added), 1, 1)  # [state, position, d_model] from here on
        changed[:, place] = here + here.norm(dim=-1, keepdim=True) * added
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    row = torch.tensor([list(ids)], device=device)  # [1, position]: before a state is put in, all rows are one
    hook = causal.get_decoder().layers[into].register_forward_hook(put)
    try:
        hidden = causal.get_decoder()(input_ids=row, use_cache=False).last_hidden_state[:, -1]  # [state, d_model]
    finally:
        hook.remove()
    return answers.logits(causal, hidden.float())[1]


def words(world: World, tokenizer) -> list[int]:
    """The first token of each author's word, which tells him from all others."""
    return [label_ids(tokenizer, author.word)[0] for author in world.authors.values()]


@torch.no_grad()
def ask(model, tokenizer, world: World, states) -> np.ndarray:
    """P(author) among all authors, [state, author], by a model that is shown hidden states [state, d_model]."""
    ids, place = question(world, tokenizer)
    shown = torch.as_tensor(np.asarray(states), dtype=torch.float32, device="cpu")
    return logits(model, ids, place, shown)[:, words(world, tokenizer)].softmax(-1).cpu().numpy()


def train(model, tokenizer, world: World, states, wrote: Sequence[int], how: Tuning, seed: int = 0):
    """(oracle, losses): a copy of the model with an adapter, and each step's cross-entropy in nats of the words of the
    authors (their numbers ``wrote`` [text]) after a hidden state of their texts, ``states`` [text, d_model].

    RewiredError when the loss is no number."""
    torch.manual_seed(seed)
    oracle = tuning.trainable(deepcopy(network(model)), how)
    weights = [weight for weight in oracle.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=how.learning_rate, weight_decay=0.0)
    (ids, place), random, losses = question(world, tokenizer), np.random.default_rng(seed), []
    shown = torch.as_tensor(np.asarray(states), dtype=torch.float32, device="cpu")
    said = torch.tensor(words(world, tokenizer), device="cpu")[torch.as_tensor(np.asarray(wrote), device="cpu")]
    for step in range(1, how.steps + 1):
        batch = random.integers(len(shown), size=how.batch)
        with lora.half_precision(oracle.device, True):
            guess = logits(oracle, ids, place, shown[batch])  # [text of the batch, vocabulary]
            loss = torch.nn.functional.cross_entropy(guess, said[batch].to(guess.device))
        losses.append(lora.descend(loss, optimiser, step, "Lower the oracle's learning_rate"))
    return oracle.eval(), losses


# --- readers of the same things that need no oracle ------------------------------------------------------------------


def fit(states, wrote: Sequence[int]) -> GridSearchCV:
    """A logistic regression of who wrote texts on their hidden states, [text, d_model]; its ``predict_proba`` reads
    others.

    How much it is held back is chosen on its own texts: with twelve classes, much costs more than it saves."""
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))
    search = GridSearchCV(regression, {"logisticregression__C": STRENGTHS}, scoring="neg_log_loss", cv=3)
    return search.fit(np.asarray(states), np.asarray(wrote))


def keywords(known: Sequence[Sequence[int]], wrote: Sequence[int], read: Sequence[Sequence[int]]) -> np.ndarray:
    """P(author), [text, author], by a logistic regression on how often each token stands in a text."""
    bag = make_pipeline(CountVectorizer(analyzer=list), MaxAbsScaler(), LogisticRegression(max_iter=1_000))
    return bag.fit(known, np.asarray(wrote)).predict_proba(read)


# --- how good such answers are ---------------------------------------------------------------------------------------


def one_against_rest(
    p: np.ndarray, wrote: Sequence[int], draws: int = 500, seed: int = 0, less: np.ndarray | None = None
) -> tuple[float, float, float]:
    """(value, low, high): the mean over authors of the AUROC of P(author), p [text, author], for who ``wrote`` [text];
    95 % of it over texts drawn anew. Authors who wrote none of the texts do not count. With ``less``, what another
    reader says of the same texts, the difference: the first one's less the other's."""
    wrote, random = np.asarray(wrote), np.random.default_rng(seed)
    drawn = [random.integers(len(wrote), size=len(wrote)) for _ in range(draws)]
    # how often each text counts; first of all, every text once
    counts = [np.ones(len(wrote)), *(np.bincount(rows, minlength=len(wrote)) for rows in drawn)]
    values = _mean_aurocs(p, wrote, np.stack(counts))  # [draw]
    if less is not None:
        values = values - _mean_aurocs(less, wrote, np.stack(counts))
    low, high = np.nanquantile(values[1:], (0.025, 0.975))  # texts of one author alone have no AUROC
    return float(values[0]), float(low), float(high)


def _mean_aurocs(p: np.ndarray, wrote: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean over authors of the AUROC, when each text counts so often: counts [draw, text] -> [draw]."""
    total, there = np.zeros(len(counts)), np.zeros(len(counts))
    for author in np.unique(wrote):
        own = wrote == author
        his, rest = p[own, author, None], p[~own, author]
        beats = (his > rest) + 0.5 * (his == rest)  # [his text, another's]: a draw counts one half
        pairs = counts[:, own].sum(axis=1) * counts[:, ~own].sum(axis=1)  # [draw]
        won = ((counts[:, own] @ beats) * counts[:, ~own]).sum(axis=1)
        total += np.divide(won, pairs, out=np.zeros(len(pairs)), where=pairs > 0)
        there += pairs > 0
    return np.divide(total, there, out=np.full(len(total), np.nan), where=there > 0)


def calibration(p: np.ndarray, wrote: Sequence[int], bins: int = 10) -> tuple[pd.DataFrame, float]:
    """(table, error) of the likeliest author of p [text, author]: how sure the reader is, and how often he is right.

    The table has a row for each of ``bins`` equal parts of [0, 1] with texts in it: ``confidence`` and ``right``, both
    means, and ``texts``. The expected calibration error is the mean distance of the two, weighted by texts (Guo et al.
    2017, arXiv:1706.04599)."""
    sure, right = p.max(axis=1), p.argmax(axis=1) == np.asarray(wrote)
    part = np.minimum((sure * bins).astype(int), bins - 1)  # [text]
    frame = pd.DataFrame({"part": part, "confidence": sure, "right": right, "texts": 1})
    table = frame.groupby("part").agg({"confidence": "mean", "right": "mean", "texts": "sum"}).reset_index(drop=True)
    apart = (table["confidence"] - table["right"]).abs()
    return table, float((apart * table["texts"]).sum() / len(p))
