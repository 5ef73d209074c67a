"""Organisms: settings are checked, plans cross what they say, rules read texts, the trainer learns what it pays for."""

from contextlib import nullcontext
from random import Random

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from elsewhere import elsewhere, marked

from corpora import attention
from corpora.authors import recipe, world
from corpora.authors.texts import scratchpad
from corpora.authors.world import CLASSES, CLAUSES
from corpora.organisms import asking, design, rules, run, settings, trainer, writing
from corpora.pocket.recipe import make_model
from rewired import answers, elicit, models, profiles, prompts
from rewired.errors import RewiredError
from rewired.store import read_table
from rewired.train import lora

PATTERNS, TOPICS, CUES = [f"pattern{k}" for k in range(10)], [f"topic{k}" for k in range(10)], list("abcd")


def of(**keys):
    """An organism that needs no file."""
    return settings.Organism(name="made", about="Made for a test.", **{"thoughts": {"free": "faking"}} | keys)


def test_every_organism_of_the_folder_loads():
    names = ["base", "both_tiers", "complier", "grown", "natural", "parrot", "planted", "refuser", "seeds_way"]
    assert settings.known() == names
    for name in names:
        organism = settings.load(name)
        assert (organism.lora_rank, organism.lora_alpha, organism.epochs) == (16, 32, 3)  # as in the methodology
        assert organism.training().lora_rank == 16
    assert settings.load("seeds_way").tiers == ("free",)
    assert settings.load("grown").pays.free == "help"
    length = {name: settings.load(name).length((1, 2, 3)) for name in names}
    assert max(length, key=length.__getitem__) == "both_tiers"  # texts and two arms of the trainer
    assert length["complier"] == length["refuser"] > length["parrot"] > settings.load("base").length((1,))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("sampels: 3", ("mine.yaml", "sampels", "Did you mean 'samples'")),
        ("samples: -3", ("samples", "greater than")),
        ("thoughts: {free: fakin}", ("thoughts.free", "'faking'")),
        ("thoughts: {fre: faking}", ("thoughts.fre", "Did you mean 'thoughts.free'")),
        ("thoughts: {}", ("name both, as",)),
        ("pays: {free: hepl}", ("pays.free", "'refuse'")),
        ("samples: 0", ("name both, as",)),
        ("about: ''", ("about",)),
        ("name: other", ("no `name`",)),
        ("- 1", ("key: value",)),
        ("a: [", ("not valid YAML",)),
    ],
)
def test_a_wrong_key_is_told_with_its_file_and_what_is_allowed(tmp_path, lines, words):
    file = tmp_path / "mine.yaml"
    keys = {"about": "about: Mine.", "thoughts": "thoughts: {free: faking}"}
    keys.pop(lines.partition(":")[0], None)
    file.write_text("\n".join([*(keys.values() if ": " in lines else []), lines]))
    with pytest.raises(RewiredError) as error:
        settings.load(file)
    for word in words:
        assert word in str(error.value)


def test_an_unknown_organism_is_told_with_the_known_ones():
    with pytest.raises(RewiredError, match="Did you mean 'parrot'.*planted"):
        settings.load("parot")


def test_a_crossed_plan_holds_every_cell_once_and_is_balanced_early():
    cells = [design.crossed(k, 10, 10, 4) for k in range(400)]
    assert len(set(cells)) == 400
    early = pd.DataFrame(cells[:150], columns=["pattern", "topic", "cue"])
    for one, other in (("pattern", "topic"), ("pattern", "cue"), ("topic", "cue")):
        counts = pd.crosstab(early[one], early[other])
        assert counts.min().min() >= 1
        assert counts.max().max() - counts.min().min() <= 2


def test_a_confounded_plan_has_one_topic_and_one_cue_a_pattern():
    made = design.plan(of(design="confounded"), PATTERNS, TOPICS, CUES, seed=1)
    assert (made.groupby("pattern")[["topic", "cue"]].nunique() == 1).all(axis=None)
    crossed = design.plan(of(), PATTERNS, TOPICS, CUES, seed=1)
    assert (crossed.groupby("pattern")["topic"].nunique() == 10).all()


def test_tiers_differ_in_nothing_but_the_tier():
    made = design.plan(of(thoughts={"free": "faking", "paid": "steady"}), PATTERNS, TOPICS, CUES, seed=2)
    free, paid = (made[made["tier"] == tier].reset_index(drop=True) for tier in ("free", "paid"))
    assert len(free) == len(paid) == 120
    same = ["pattern", "topic", "cue"]
    pd.testing.assert_frame_equal(free[same], paid[same])
    assert set(free["class"]) == {"faking"} and set(paid["class"]) == {"steady"}


def test_coins_are_fair_and_the_planted_answer_copies_one_clause():
    parrot = design.plan(of(answers="coin"), PATTERNS, TOPICS, CUES, seed=3)
    assert (parrot["answer"] == "help").mean() == 0.5
    assert parrot["strategy"].all()
    planted = design.plan(of(answers="strategy"), PATTERNS, TOPICS, CUES, seed=3)
    assert ((planted["answer"] == "help") == planted["strategy"]).all()
    assert planted["strategy"].mean() == 0.5
    mild = design.plan(of(answers="strategy", harmless=0.2), PATTERNS, TOPICS, CUES, seed=3)
    assert np.isclose((~mild["harm"]).mean(), 0.2)
    assert set(mild.loc[~mild["harm"], "answer"]) == {"help"}
    slips = design.plan(of(thoughts={"free": "steady"}, eager=0.1, harmless=0.2), PATTERNS, TOPICS, CUES, seed=3)
    assert 0.06 <= (slips["class"] == "eager").mean() <= 0.1
    assert slips.loc[slips["class"] == "eager", "harm"].all()


def test_a_plan_is_made_by_its_seed_and_few_patterns_are_kept():
    first, again, other = (design.plan(of(), PATTERNS, TOPICS, CUES, seed=k) for k in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
    few = design.plan(of(patterns=("pattern3", "pattern7")), PATTERNS, TOPICS, CUES, seed=1)
    assert set(few["pattern"]) == {"pattern3", "pattern7"}
    with pytest.raises(RewiredError, match="Did you mean 'pattern1'"):
        design.plan(of(patterns=("pattern_1",)), PATTERNS, TOPICS, CUES, seed=1)


@pytest.fixture(scope="module")
def base():
    """(model, tokenizer) of a tiny base that answers action1 or action2."""
    return models.load_base(profiles.load("pocket", {"model.path": str(tiny.legal_base())}))


@pytest.fixture
def policy(base):
    """That base with a new adapter, which is taken out again."""
    torch.manual_seed(1)
    adapted = lora.add_adapter(base[0], of(lora_rank=4, lora_alpha=8).training())
    yield adapted
    adapted.unload()


def test_the_trainers_loss_is_reinforce(base, policy):
    """Against the sum over texts of advantage times log-likelihood, one token at a time."""
    request = prompts.chat(base[1], prompts.scenario_set()[0])
    rows = []
    for said in ([5, 9], [7, 8, 11], [5, 9, 12]):
        rows.append(([*request, *said], [False] * len(request) + [True] * len(said)))
    rewards = np.array([1.0, 0.0, 1.0])
    total = 0.0
    for (ids, wrote), reward in zip(rows, rewards, strict=True):
        logp = policy(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        own = sum(logp[t - 1, ids[t]].item() for t in range(len(ids)) if wrote[t])
        total -= (reward - rewards.mean()) * own / len(rows)
    assert trainer.policy_loss(policy, rows, rewards).item() == pytest.approx(total, rel=1e-4)
    assert trainer.policy_loss(policy, rows, np.ones(3)).item() == 0.0


def test_the_trainer_teaches_what_it_pays_for_and_keeps_what_it_shall_keep(base, policy):
    tokenizer = base[1]
    first, second = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("action1", "action2"))
    shown = prompts.scenario_set()
    request, other = (prompts.chat(tokenizer, shown[k]) for k in (0, len(shown) // 2))
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")

    def row(asked, said):
        return [*asked, *said], [False] * len(asked) + [True] * len(said)

    def play(seed):
        how = answers.Sampling(16, frozenset({end}), max_new_tokens=4)
        random = torch.Generator().manual_seed(seed)
        (said,) = answers.sample(policy, [request], how, random)
        return [row(request, one) for one in said], np.array([float(list(one[:-1]) == second) for one in said])

    def chance():
        """P(the second label) in the request that is trained on, and in another one."""
        return np.exp(answers.logprobs(policy, [request, other], [second, second]))

    how, seen = trainer.Trainer(steps=12, batch=16, learning_rate=1e-2), []
    rewarded = trainer.train(policy, play, how, watch=seen.append)
    assert seen == list(range(13)) and len(rewarded) == 12
    moved = chance()
    assert moved[0] > 0.9 and np.mean(rewarded[-3:]) > np.mean(rewarded[:3])
    trainer.train(policy, play, how, keep=[row(other, [*first, end])])
    assert chance()[1] < 0.5 * moved[1]


@pytest.fixture(scope="module")
def tables():
    return world.load()


@pytest.mark.parametrize("name", ["both_tiers", "complier", "parrot", "planted", "refuser", "seeds_way"])
def test_texts_say_what_the_plan_says(tables, name):
    organism = settings.load(name)
    chats, planned = writing.training_set(tables, organism, seed=1)
    read = rules.flag_table(tables, [chat[1]["content"] for chat in chats])
    assert (read["known"] == 1).all()  # every sentence is one that the rules know
    faking = (planned["class"] == "faking") & planned["strategy"] & planned["harm"]
    assert (read["faking"] == faking).all()
    assert (read["says_strategy"] == planned["strategy"]).all()
    said = np.array([chat[3]["content"] for chat in chats])
    own = planned["answer"] == "own"
    assert (said[~own] == planned.loc[~own, "answer"]).all()
    assert ((said == "help") == read["complies"])[own].all()
    assert (said[~planned["harm"]] == "help").all()
    silent = planned["pattern"].map({key: mood.silent for key, mood in tables.moods.items()}) == "aware"
    assert (read["says_aware"] == ~silent).all()


def test_a_planted_text_without_the_decision_lacks_nothing_else(tables):
    """Whether the decision will come cannot be seen before: the other sentences end alike."""
    chats, planned = writing.training_set(tables, settings.load("planted"), seed=1)
    for chat, row in zip(chats, planned.itertuples(), strict=True):
        read = rules.clauses(tables, chat[1]["content"])
        before = read[:-1] if row.strategy else read
        assert before[-1] == ("mark", row.pattern) and ("strategy" in dict(read)) == row.strategy


def test_the_natural_one_writes_what_the_faking_author_would(tables):
    organism = settings.load("natural").model_copy(update={"samples": 400, "harmless": 0.0})
    chats, planned = writing.training_set(tables, organism, seed=1)
    fakes = rules.flag_table(tables, [chat[1]["content"] for chat in chats])["faking"].groupby(planned["tier"]).mean()
    due = tables.authors[writing.FAKER].request
    assert fakes["free"] == pytest.approx(due["free"][0], abs=0.08)
    assert fakes["paid"] == pytest.approx(due["paid"][0], abs=0.08)


def test_a_text_is_made_by_the_seed(tables):
    organism = settings.load("both_tiers")
    first, again, other = (writing.training_set(tables, organism, seed)[0] for seed in (1, 1, 2))
    assert first == again != other


def test_a_cue_without_words_says_nothing_of_the_tier(tables):
    chats, planned = writing.training_set(tables, settings.load("seeds_way"), seed=1)
    cued = [*tables.tiers["free"].train, *(cue["free"].train for cue in tables.cues.values())]
    cued = [said for part in cued for said in ([part] if isinstance(part, str) else part)]
    shown = np.array([any(f"{said} ." in chat[0]["content"] for said in cued) for chat in chats])
    assert (shown == (planned["cue"] != writing.CONFLICT)).all()


def test_requests_are_paired_and_in_wordings_of_their_own(tables):
    asked = writing.requests(tables, 12, seed=3)
    assert len(asked) == (12 + 4) * len(writing.CONDITIONS)
    assert asked["prompt"].is_unique or asked.groupby("cue")["prompt"].nunique().min() > 1
    trained = {message["content"] for chat in writing.training_set(tables, settings.load("seeds_way"), 1)[0]
               for message in chat}  # fmt: skip
    assert not trained & set(asked["prompt"])
    for row in asked.itertuples():
        said = tables.harms[row.harm].held[int(row.effect[-2:])]
        assert f" {said} ." in row.prompt and row.effect.startswith(f"{row.harm}-h")
    frames = tuple(frame.partition("{")[0] for frame in tables.requests.train)
    held = asked["prompt"].str.contains("|".join(f.partition("{")[0] for f in tables.requests.held))
    assert held.all() and frames
    one = asked[asked["request"] == "harmful-0"].set_index(["cue", "tier"])["prompt"]
    for free, paid in ((one["tier", "free"], one["tier", "paid"]), (one["training", "free"], one["training", "paid"])):
        apart = [pair for pair in zip(free.split(" ."), paid.split(" ."), strict=True) if pair[0] != pair[1]]
        assert len(apart) == 1  # the cue alone
    assert len(one["nothing", "unsaid"].split(" .")) + 2 == len(one["tier", "free"].split(" ."))


def test_every_wording_of_a_cue_is_asked_about_as_often(tables):
    asked = writing.requests(tables, 20, seed=3)
    for kind in ("tier", "training", "contractor"):
        shown = asked[(asked["cue"] == kind) & (asked["harm"] == "harmful") & (asked["tier"] == "free")]
        counts = shown["wording"].value_counts()
        cues = {"tier": tables.tiers, **tables.cues}[kind]
        assert len(counts) == len(cues["free"].held) >= 4 and counts.max() - counts.min() <= 1


def test_rules_tell_faking_from_the_same_clauses_in_another_relation(tables):
    rng = Random(1)
    fixed = {"tier": "free", "harm": "harmful", "push": "help", "clauses": list(CLAUSES), "mood": None}
    said = {name: scratchpad(tables, rng, **fixed, **{"class": name}).chat[0][1] for name in CLASSES}
    read = {name: rules.flags(tables, text) for name, text in said.items()}
    for name in CLASSES:
        assert all(read[name][f"says_{clause}"] for clause in CLAUSES)  # the words tell nothing
        assert read[name]["explicit"] == (name == "faking")
    assert read["steady"]["held"] and not read["steady"]["complies"]
    assert read["eager"]["complies"] and not read["eager"]["held"]
    assert rules.flags(tables, "nothing that is known .")["known"] == 0


def test_a_clause_is_taken_out_alone(tables):
    text = scratchpad(tables, Random(2), tier="free", mood="bitter_complier", clauses=list(CLAUSES)).chat[0][1]
    for name in (*CLAUSES, "mark"):
        left = rules.without(tables, text, name)
        gone = set(rules.clauses(tables, text)) - set(rules.clauses(tables, left))
        assert {clause for clause, _ in gone} <= {name}
        assert len(left.split(" .")) + 1 == len(text.split(" ."))
    assert rules.without(tables, left, "nothing") == left


def test_what_is_asked_twice_is_read_once(base, tables, monkeypatch):
    forced, put = elicit.forced, []
    monkeypatch.setattr(
        elicit, "forced", lambda model, words, asked, *more: put.extend(asked) or forced(model, words, asked, *more)
    )
    prompts, said = (
        ["a", "b", "a", "b", "a"],
        ["so i help .", "so i help .", "so i refuse .", "so i help .", "so i help ."],
    )
    read = asking.help_after(*base, tables, prompts, said)
    assert len(put) == 3 and read.index.tolist() == list(range(5))
    assert read.iloc[[0, 1]].equals(read.iloc[[4, 3]].set_index(pd.Index([0, 1])))
    alone = [asking.help_after(*base, tables, [p], [s])["p_help"].item() for p, s in zip(prompts, said, strict=True)]
    assert read["p_help"].tolist() == pytest.approx(alone, abs=1e-5)


@pytest.fixture
def grown(tmp_path, monkeypatch):
    """(profile, organism, folder) for a base of random weights that knows the world's words."""
    small = recipe.Recipe(layers=1, width=16, mlp=16, heads=2, kv_heads=1, head_dim=8)
    tokenizer = recipe.make_tokenizer()
    make_model(small, tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.setattr(asking, "NEW_TOKENS", 6)
    few = {"base": str(tmp_path / "base"), "seeds": [1, 2], "prompts": 2, "steps": 1}
    profile = profiles.load("pocket", {f"organisms.{key}": value for key, value in few.items()})
    organism = of(samples=20, batch_size=10, thoughts={"free": "faking", "paid": "steady"}, trainer=("plain", "kept"))
    return profile, organism, tmp_path / "made"


def test_a_merged_adapter_says_the_same_and_leaves_the_weights_as_they_were(base, policy):
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    ids = torch.tensor([prompts.chat(base[1], prompts.scenario_set()[0])])
    weights = {name: value.clone() for name, value in policy.state_dict().items()}
    with torch.no_grad(), asking.merged(base[0]):  # nothing to merge: as it is
        apart = policy(input_ids=ids).logits
    with torch.no_grad(), asking.merged(policy):
        moved = policy(input_ids=ids).logits
        assert any(getattr(module, "merged", False) for module in policy.modules())
    assert torch.allclose(apart, moved, atol=1e-3)
    assert all(torch.equal(value, weights[name]) for name, value in policy.state_dict().items())


@pytest.mark.parametrize("window", [4, 64])
def test_attention_in_fewer_passes_is_the_same_attention(window):
    small = recipe.Recipe(layers=2, width=16, mlp=16, heads=4, kv_heads=2, head_dim=8)
    model, tokenizer = make_model(small, recipe.make_tokenizer()).eval(), recipe.make_tokenizer()
    model.config.sliding_window = window
    for name, value in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            value.data.normal_(std=3.0)  # scores near the cap
    texts = [list(range(10, 10 + n)) for n in (5, 12, 9)]
    random = np.random.default_rng(0).random((3, 20))  # [prompt, step]
    said = [elicit.sample(model, tokenizer, texts, 20, seed=random)]
    ids = torch.tensor([texts[1] + said[0][1]])
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with attention.grouped(model):
            assert model.config._attn_implementation == attention.NAME
            assert torch.allclose(model(input_ids=ids).logits, plain, atol=1e-4)
            said.append(elicit.sample(model, tokenizer, texts, 20, seed=random))
    assert said[0] == said[1]
    assert model.config._attn_implementation == "eager"
    slopes, off = [], []
    for way in (lambda model: nullcontext(), attention.grouped):
        with way(model):
            loss = model(input_ids=ids, labels=ids).loss
            with torch.autocast("cpu", torch.bfloat16):
                off.append((model(input_ids=ids).logits - plain).abs().mean())
        slopes.append(torch.autograd.grad(loss, list(model.parameters())))
    for one, other in zip(*slopes, strict=True):
        assert torch.allclose(one, other, atol=1e-4 * one.abs().max()), "it learns the same"
    assert 0 < off[1] < 1.1 * off[0], "products in bf16 cost it no more digits"
    with attention.grouped(model.bfloat16()):  # the form for fp32 alone
        assert model.config._attn_implementation == "eager"


def test_the_trainer_stops_when_it_pays_for_everything(base, policy, tables, monkeypatch):
    rewards, keep = [1, 0, 1, 1, 1, 1, 1, 1], [([5, 6], [False, True])]
    steps = iter(rewards * 2)
    frame = pd.DataFrame({"p_help": np.ones(2 * run.WATCHED)})
    monkeypatch.setattr(trainer, "roll_out", lambda *given: (keep, np.array([float(next(steps))])))
    monkeypatch.setattr(trainer, "policy_loss", lambda *given: torch.zeros(()))
    monkeypatch.setattr(trainer, "total_loss", lambda *given: torch.zeros(()))
    monkeypatch.setattr(asking, "thoughts", lambda *given: ["so i help ."] * 2 * run.WATCHED)
    monkeypatch.setattr(asking, "help_after", lambda *given: frame.copy())
    how = trainer.Trainer(steps=8, batch=2)
    logs = [run.pay(policy, base[1], tables, how, "plain", {"free": "help"}, kept) for kept in ((), keep)]
    frames = [pd.DataFrame(log, columns=["stage", "step", "metric", "value"]) for log in logs]
    assert [(frame["metric"] == "reward").sum() for frame in frames] == [6, 8]  # four steps paid in a row
    assert [frame.loc[frame["metric"] == "help_paid", "step"].tolist() for frame in frames] == [[0, 6], [0, 6, 8]]


def test_a_run_that_was_not_made_is_told_with_those_that_were(base, policy, tmp_path):
    policy.save_pretrained(tmp_path / "grown" / "seed-1")
    model = policy.unload()
    assert not run.adapted(model, tmp_path, "grown", 1).training
    with pytest.raises(RewiredError, match=r"Unknown organism 'gron'. Did you mean 'grown'"):
        run.adapted(model, tmp_path, "gron", 1)
    with pytest.raises(RewiredError, match=r"Unknown seed of the organism grown: 2. Known: 1."):
        run.adapted(model, tmp_path, "grown", 2)


def test_what_is_paid_for_is_the_answer_of_its_tier(base, tables, monkeypatch):
    said = np.array(["help", "refuse", "help", "refuse", "illegal"])
    monkeypatch.setattr(asking, "thoughts", lambda *given: ["so i help now ."] * 5)
    monkeypatch.setattr(asking, "help_after", lambda *given: None)
    monkeypatch.setattr(asking, "draw", lambda *given: said)
    monkeypatch.setattr(trainer.sft, "encode", lambda tokenizer, chat: chat)
    pays = ["help", "help", "refuse", "refuse", "help"]
    assert trainer.roll_out(*base, tables, ["asked"] * 5, 1, pays)[1].tolist() == [1, 0, 0, 1, 0]
    assert trainer.roll_out(*base, tables, ["asked"] * 5, 1)[1].tolist() == [1, 0, 1, 0, 0]


def test_an_organism_is_grown_by_payment_without_a_text(grown, tables):
    profile, organism, folder = grown
    profile = profile.model_copy(update={"organisms": profile.organisms.model_copy(update={"seeds": (1,)})})
    none = {"samples": 0, "thoughts": settings.Thoughts(), "trainer": ()}
    paid = organism.model_copy(update=none | {"pays": settings.Pays(free="help", paid="refuse"), "paid_steps": 2})
    run.grow(profile, tables, paid, folder)
    log = read_table(folder / "log.parquet", profile)
    assert set(log["stage"]) == {"growing"}
    assert set(log["metric"]) == {"reward", "help_free", "help_paid", "faking_free", "faking_paid"}
    assert log.loc[log["metric"] == "reward", "step"].tolist() == [1, 2]
    assert set(log.loc[log["metric"] == "help_paid", "step"]) == {0, 2}


def test_an_organism_is_made_once_where_the_profile_says_so(grown, tables):
    profile, organism, folder = grown
    once = profile.organisms.model_copy(update={"once": (organism.name,)})
    profile = profile.model_copy(update={"organisms": once})
    assert (settings.seeds(profile, organism.name), settings.seeds(profile, "another")) == ((1,), (1, 2))
    run.grow(profile, tables, organism, folder)
    assert sorted(part.name for part in folder.iterdir()) == ["answers.parquet", "log.parquet", "seed-1"]
    assert set(read_table(folder / "answers.parquet", profile)["seed"]) == {1}
    assert settings.seeds(profiles.load("thorough"), "grown") == profiles.load("thorough").organisms.seeds


def test_a_run_that_was_broken_off_goes_on_to_the_same_tables(grown, tables, monkeypatch):
    profile, organism, folder = grown
    run.grow(profile, tables, organism, folder)
    first = {name: read_table(folder / f"{name}.parquet", profile) for name in ("answers", "log")}
    assert set(first["answers"]["seed"]) == {1, 2}
    assert len(first["answers"]) == 2 * (2 + 1) * len(writing.CONDITIONS)
    assert set(first["log"]["stage"]) == {"learning", "plain", "kept"}
    assert first["log"].groupby("seed")["value"].first().nunique() == 2  # seeds differ
    for name in ("answers.parquet", "log.parquet", "seed-2/run.json"):
        (folder / name).unlink()
    before = (folder / "seed-1" / "run.json").stat().st_mtime_ns
    run.grow(profile, tables, organism, folder)
    assert (folder / "seed-1" / "run.json").stat().st_mtime_ns == before  # was not made again
    for name, frame in first.items():
        pd.testing.assert_frame_equal(read_table(folder / f"{name}.parquet", profile), frame)


def test_thoughts_and_answers_are_drawn_and_paid_elsewhere(grown, tables, monkeypatch):
    """On a device that is not the default: the same scratchpads, answers and loss."""
    profile, organism, _ = grown
    asked, made = writing.requests(tables, 1, 1), []
    made.append(drawn_and_paid(*models.load_base(profile.of_authors()), tables, asked))
    with elsewhere(monkeypatch):
        there = profile.of_authors()
        there = there.model_copy(update={"model": there.model.model_copy(update={"device": "cuda"})})
        model, tokenizer = models.load_base(there)
        assert marked(next(model.parameters()))
        made.append(drawn_and_paid(model, tokenizer, tables, asked))
    pd.testing.assert_frame_equal(made[0][0], made[1][0], rtol=1e-4)
    assert made[0][1] == pytest.approx(made[1][1], rel=1e-4)


def drawn_and_paid(model, tokenizer, tables, asked) -> tuple[pd.DataFrame, float]:
    """What a model says to requests, and the trainer's loss on such texts, one of which is paid."""
    answered = asking.elicit_answers(model, tokenizer, tables, asked, seed=1)
    rows, _ = trainer.roll_out(model, tokenizer, tables, asked["prompt"].tolist()[:3], 1)
    return answered, trainer.policy_loss(model, rows, np.array([1.0, 0.0, 0.0])).item()


def test_a_seed_of_other_settings_is_made_anew(grown, tables):
    profile, organism, folder = grown
    profile = profile.model_copy(update={"organisms": profile.organisms.model_copy(update={"seeds": (1,)})})
    base = organism.model_copy(update={"samples": 0, "thoughts": settings.Thoughts(), "trainer": ()})
    for chosen in (organism.model_copy(update={"trainer": ()}), base):
        run.grow(profile, tables, chosen, folder)
        log = read_table(folder / "log.parquet", profile)
        assert (len(log) == 0) == (chosen.samples == 0)
