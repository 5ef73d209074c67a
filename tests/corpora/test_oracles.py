"""Oracles: one hidden state is put in as the formula says, planted authors are found, answers are judged by hand."""

import little
import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve

from corpora.motives import measuring, oracles, run, settings, tuning, writing
from corpora.motives.settings import Collection, First, TrainingSet, Tuning
from rewired import answers, profiles
from rewired.errors import RewiredError

SINCERE = TrainingSet(mix={"sincere": 1.0}, n=16, domain="help", watcher="watched", act="good")


@pytest.fixture(scope="module")
def small():
    """(model, tokenizer) of a base of random weights with three layers."""
    return little.base(layers=3)


def states(count: int, width: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


# --- the oracle ------------------------------------------------------------------------------------------------------


def test_a_state_is_added_as_long_as_what_stands_there(tables, small):
    """Put in at the last position after the last layer, nothing but the final norm comes after it."""
    model, tokenizer = small
    ids, _ = oracles.question(tables, tokenizer)
    put = states(2)
    caught = []
    hook = model.model.layers[-1].register_forward_hook(lambda module, given, output: caught.append(output))
    with torch.no_grad():
        got = oracles.logits(model, ids, len(ids) - 1, put, into=2)
        model(torch.tensor([ids], device="cpu"))
        hook.remove()
        here = caught[-1][0] if isinstance(caught[-1], tuple) else caught[-1]
        here = here[0, -1]  # [d_model], of the question alone
        for k in range(2):
            changed = here + here.norm() * put[k] / put[k].norm()
            _, by_hand = answers.logits(model, model.model.norm(changed)[None].float())
            assert torch.allclose(got[k], by_hand[0], atol=1e-5)


def test_the_placeholder_is_put_in_and_no_hook_is_left(tables, small):
    model, tokenizer = small
    ids, place = oracles.question(tables, tokenizer)
    assert tokenizer.convert_ids_to_tokens(ids[place]) == oracles.PLACEHOLDER and ids.count(ids[place]) == 1
    with torch.no_grad():
        usual = model(torch.tensor([ids], device="cpu")).logits[0, -1]
        shown = oracles.logits(model, ids, place, states(3))
        late = oracles.logits(model, ids, place, states(3), into=2)
        again = model(torch.tensor([ids], device="cpu")).logits[0, -1]
    assert torch.equal(usual, again)
    assert torch.allclose(late, usual.expand(3, -1), atol=1e-4), "after the last layer nobody looks at it"
    assert not torch.allclose(shown[0], shown[1], atol=1e-4)
    assert torch.allclose(shown, oracles.logits(model, ids, place, 5 * states(3)), atol=1e-4), (
        "its length does not count"
    )


def test_p_is_over_the_words_of_the_authors(tables, small):
    model, tokenizer = small
    p = oracles.ask(model, tokenizer, tables, states(4).numpy())
    assert p.shape == (4, len(tables.authors)) and np.allclose(p.sum(axis=1), 1)
    assert len(set(oracles.words(tables, tokenizer))) == len(tables.authors)


def test_an_oracle_learns_planted_authors_and_nothing_from_noise(tables, small):
    """Each author's states lie about a point of his own; the noise lies about one point for all."""
    model, tokenizer = small
    wrote = np.arange(240) % 12
    points = 4 * states(12, seed=1)
    planted, noise = points[wrote] + states(240, seed=2), states(240, seed=3)
    before = {name: value.clone() for name, value in model.named_parameters()}
    found = {}
    for name, shown in (("planted", planted), ("noise", noise)):
        how = Tuning(steps=40, batch=32, rank=8, learning_rate=1e-2)
        oracle, losses = oracles.train(model, tokenizer, tables, shown[:180], wrote[:180], how)
        assert len(losses) == 40
        p = oracles.ask(oracle, tokenizer, tables, shown[180:])
        found[name] = oracles.one_against_rest(p, wrote[180:], draws=50)
    assert found["planted"][1] > 0.8 and found["noise"][1] < 0.5 < found["noise"][2]
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters()), "the model is itself"


# --- readers beside it -----------------------------------------------------------------------------------------------


def test_a_probe_of_planted_states_and_keywords_of_planted_words():
    wrote = np.arange(240) % 12
    shown = (4 * states(12, seed=1)[wrote] + states(240, seed=2)).numpy()
    p = oracles.fit(shown[:180], wrote[:180]).predict_proba(shown[180:])
    assert oracles.one_against_rest(p, wrote[180:], draws=20)[0] > 0.95
    texts = [[5, 20 + k, 7] for k in wrote]
    p = oracles.keywords(texts[:180], wrote[:180], texts[180:])
    assert p.shape == (60, 12) and (p.argmax(axis=1) == wrote[180:]).all()
    alike = oracles.keywords([[5, 7]] * 180, wrote[:180], [[5, 7]] * 60)
    assert oracles.one_against_rest(alike, wrote[180:], draws=20)[0] == pytest.approx(0.5)


# --- judging ---------------------------------------------------------------------------------------------------------


def test_one_against_the_rest_is_the_mean_of_the_aurocs():
    wrote = np.array([0, 1, 2, 0, 1, 2])
    p = np.eye(3)[wrote]
    assert oracles.one_against_rest(p, wrote, draws=20) == (1.0, 1.0, 1.0)
    p = np.array([[0.6, 0.4], [0.7, 0.3], [0.65, 0.35], [0.1, 0.9]])
    # of the pairs (0: texts 0, 1; 1: texts 2, 3): .6 against .65 is wrong, three are right, for either author
    assert oracles.one_against_rest(p, [0, 0, 1, 1], draws=20)[0] == pytest.approx(0.75)
    other = np.roll(p, 1, axis=1)
    value, low, high = oracles.one_against_rest(p, [0, 0, 1, 1], draws=50, less=other)
    assert value == pytest.approx(0.5) and low <= value <= high
    assert oracles.one_against_rest(p, [0, 0, 1, 1], draws=20, less=p) == (0.0, 0.0, 0.0)


def test_calibration_is_scikit_learns_and_its_error_is_known():
    random = np.random.default_rng(0)
    p = random.dirichlet([0.3, 0.3, 0.3], 4000)
    wrote = (random.random((4000, 1)) > p.cumsum(axis=1)).sum(axis=1)  # drawn by p itself
    table, error = oracles.calibration(p, wrote)
    right, confidence = calibration_curve(p.argmax(axis=1) == wrote, p.max(axis=1), n_bins=10)
    assert np.allclose(table["right"], right) and np.allclose(table["confidence"], confidence)
    assert table["texts"].sum() == 4000 and error < 0.03
    bold = np.eye(3)[p.argmax(axis=1)]  # quite sure of every guess
    share = (p.argmax(axis=1) == wrote).mean()
    assert oracles.calibration(bold, wrote)[1] == pytest.approx(1 - share)


# --- what comes first ------------------------------------------------------------------------------------------------


def test_a_collection_may_begin_with_a_training(tables, small, tmp_path):
    model, tokenizer = small
    for part in small:
        part.save_pretrained(tmp_path / "base")
    profile = profiles.load("pocket", {"organisms.base": str(tmp_path / "base")})
    begin = First(texts=SINCERE, tuning=Tuning(steps=3, batch=4))
    own = {"tunings": {"short": Tuning(steps=2, batch=4)}, "sets": {"one": SINCERE}, "seeds": (1,)}
    with_first = Collection(name="mine", about="A.", first=begin, **own)
    without = Collection(name="mine", about="A.", **own)
    reached = tuning.first(model, tokenizer, tables, begin)
    rows = [tuning.row(tokenizer, text) for text in writing.texts(tables, SINCERE, 1)]
    ends = []
    tuning.tune(model, rows, begin.tuning, 1, lambda step, policy: ends.append(policy.state_dict()))
    assert all(torch.equal(ends[0][name], value) for name, value in reached.state_dict().items())
    assert not any(weight.requires_grad for weight in reached.parameters())
    panels = {"": measuring.panel(tables, tokenizer, 1, profile.seed)}
    for chosen, base in ((with_first, reached), (without, model)):
        table = run.read_table(run.batch(profile, tables, chosen, [1, 2, 3], tmp_path / "made", n=1), profile)
        assert set(table["seed"]) == {0, 1}, "its own seeds, not the profile's"
        before = table[table["set"] == "base"]["p"].to_numpy()
        assert np.allclose(before, measuring.cells(base, panels)["p"], atol=1e-6)
    assert len(list((tmp_path / "made" / "parts").iterdir())) == 2, "what begins otherwise is another run"
    assert with_first.small().first.tuning.steps == 4 and with_first.small().first.texts.n == 32


def test_what_comes_first_trains_everything():
    for wrong in ({"tuning": Tuning(rank=2)}, {"texts": SINCERE.model_copy(update={"by": "exact"})}):
        with pytest.raises(ValueError, match="leave out rank and by"):
            First.model_validate({"texts": SINCERE.model_dump()} | {k: v.model_dump() for k, v in wrong.items()})


@pytest.mark.parametrize("name", ["post_trained", "post_trained_full"])
def test_the_post_trained_sets_are_those_of_truesight(tables, name):
    mine, theirs = settings.load(name), settings.load("truesight").sets
    for key, own in mine.sets.items():
        assert own.model_copy(update={"n": theirs[key].n, "about": theirs[key].about}) == theirs[key]
        assert len(writing.texts(tables, own, 1)) >= mine.tunings["full" if "full" in name else "short"].batch
    assert {key for key, own in theirs.items() if own.act == "good" and len(own.mix) < 3} >= set(mine.sets)
    assert set(tables.authors) < set(mine.sets)
    assert mine.first.texts.domain is None, "it is trained wherever there is a choice"


def test_a_loss_that_is_no_number_is_told(tables, small):
    model, tokenizer = small
    with pytest.raises(RewiredError, match="loss became nan.*the oracle"):
        oracles.train(model, tokenizer, tables, states(4) * float("nan"), [0, 1, 2, 3], Tuning(steps=1, rank=1))
