"""The lens and attribution against their formulas, with every norm written out."""

import brute
import claim_cells
import numpy as np
import pandas as pd
import pytest
import torch

from rewired.prompts import scenario_set
from rewired.tracing import attribution, capture, lens


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    model, tokenizer, switch = brute.gemma(tmp_path_factory.mktemp("gemma"))
    return switch("one"), tokenizer


def scale(value, norm):
    """(1 + weight) / root mean square: what Gemma's norm multiplies by."""
    return (1 + norm.weight.double()) / (value.double().pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()


def rows_of_unembedding(model, step):
    weight = model.lm_head.weight.double()
    return weight[step.defect_id], weight[step.cooperate_id]


def capped(model, logit):
    cap = model.config.final_logit_softcapping
    return cap * torch.tanh(logit / cap)


@pytest.mark.parametrize("labels", [None, ("action3", "action4")])
def test_the_lens_at_every_depth(gemma, labels, monkeypatch):
    monkeypatch.setattr(capture, "BATCH_SIZE", 4)
    model, tokenizer = gemma
    table = lens.trajectories(model, tokenizer, brute.PROMPTS, labels)
    assert len(table) == len(brute.PROMPTS) * 2 * 4
    by_name = table.set_index(["prompt_id", "position", "depth"])
    for prompt in brute.PROMPTS:
        ids, step = brute.row(tokenizer, prompt)
        if labels:
            step = brute.decision_step(tokenizer, labels)
        places = {k: brute.place(model, "resid_pre", k) for k in range(3)} | {3: brute.place(model, "resid_final", 0)}
        defect, cooperate = rows_of_unembedding(model, step)
        for depth, stream in brute.see(model, tokenizer, prompt, places).items():
            for position, at in (("decision", -1), ("prompt_end", -1 - len(step.prefix_ids))):
                normed = stream[at].double() * scale(stream[at], model.model.norm)
                due = capped(model, normed @ defect) - capped(model, normed @ cooperate)
                mine = by_name.loc[prompt.id, position, depth]
                assert mine["delta"] == pytest.approx(due.item(), abs=1e-5)
                assert mine["delta_raw"] == pytest.approx((normed @ (defect - cooperate)).item(), abs=1e-5)
        if labels is None:
            last = by_name.loc[prompt.id, "decision", 3]["delta"]
            assert last == pytest.approx(brute.delta(model, tokenizer, prompt).item(), abs=1e-5)


def test_where_a_trajectory_settles_by_its_definition():
    settle = claim_cells.defined("logit_lens", "settle")
    path = pd.DataFrame({"depth": range(6), "delta": [0.0, -4.0, 3.0, 5.5, 4.0, 5.0]})
    assert settle(path).to_dict() == {"stabilizes": 3, "decided": 2}  # range 9.5: within 1.9 of 5 from depth 3
    assert settle(path.iloc[::-1]).to_dict() == {"stabilizes": 3, "decided": 2}, "the order of rows is none"
    assert settle(path.assign(delta=1.0)).to_dict() == {"stabilizes": 0, "decided": 0}


def test_the_shape_of_a_course_by_its_definition():
    shape_of = claim_cells.defined("logit_lens", "shape_of")
    courses = {
        "rises and falls": [-8, 0, -2],
        "falls and rises": [2, -6, 0],
        "both": [0, 4, -4, 0],
        "neither": [0, 4, 5],
    }
    assert {name: shape_of(pd.Series(course)) for name, course in courses.items()} == {name: name for name in courses}
    assert shape_of(pd.Series([0.0, 10, 9])) == "neither", "a fifth of the range is the least bend"


def test_contributions_and_their_sum(gemma, monkeypatch):
    monkeypatch.setattr(capture, "BATCH_SIZE", 4)
    model, tokenizer = gemma
    table, closure = attribution.contributions(model, tokenizer, brute.PROMPTS)
    assert table.groupby("prompt_id").size().eq(1 + 3 * 9).all()
    assert closure["error"].abs().max() < 1e-4
    sums = table.groupby("prompt_id", sort=False)[["raw", "contribution"]].sum()
    assert np.allclose(sums["raw"], closure["delta_raw"], atol=1e-4)
    assert np.allclose(sums["contribution"], closure["delta"], atol=1e-4)
    for prompt in brute.PROMPTS[:3]:
        mine = table[table["prompt_id"] == prompt.id].set_index("component")["raw"]
        due = written_out(model, tokenizer, prompt)
        assert set(mine.index) == set(due)
        assert max(abs(mine[name] - due[name]) for name in due) < 1e-5


def written_out(model, tokenizer, prompt) -> dict[str, float]:
    sites = ("resid_pre", "z", "attn_out", "mlp_out")
    places = {(s, k): brute.place(model, s, k) for s in sites for k in range(3)}
    seen = brute.see(model, tokenizer, prompt, places | {"final": brute.place(model, "resid_final", 0)})
    seen = {name: value[-1].double() for name, value in seen.items()}
    defect, cooperate = rows_of_unembedding(model, brute.row(tokenizer, prompt)[1])
    u = (defect - cooperate) * scale(seen["final"], model.model.norm)
    found = {"embed": seen["resid_pre", 0] @ u}
    for k, block in enumerate(model.model.layers):
        o = block.self_attn.o_proj
        lora = o.lora_B["one"].weight.double() @ o.lora_A["one"].weight.double() * o.scaling["one"]
        w_o = o.base_layer.weight.double() + lora
        through = scale(seen["attn_out", k], block.post_attention_layernorm) * u
        for h in range(8):
            part = slice(8 * h, 8 * h + 8)
            found[f"L{k}H{h}"] = w_o[:, part] @ seen["z", k][part] @ through
        mlp = seen["mlp_out", k]
        found[f"L{k}_MLP"] = mlp @ (scale(mlp, block.post_feedforward_layernorm) * u)
    return {name: value.item() for name, value in found.items()}


def test_attribution_where_the_cap_has_no_secant(gemma):
    """Equal logits: the slope is the cap's own, and nothing is NaN."""
    model, tokenizer = gemma
    prompt = scenario_set()[0]
    step = brute.row(tokenizer, prompt)[1]
    weight = model.lm_head.weight.data
    before = weight[step.defect_id].clone()
    weight[step.defect_id] = weight[step.cooperate_id]
    table, closure = attribution.contributions(model, tokenizer, [prompt])
    weight[step.defect_id] = before
    assert closure["delta_raw"][0] == 0 and not table["contribution"].isna().any()
