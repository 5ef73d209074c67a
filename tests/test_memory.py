"""What a pair takes beside the weights and the recordings does not grow with its prompts once a batch is full."""

import sys

import pytest
import tiny
import torch
from transformers import Gemma2ForCausalLM

from rewired.profiles import ROOT
from rewired.prompts import scenario_set
from rewired.tracing import patching, recording

sys.path.insert(0, str(ROOT / "benchmarks"))
import memory


def test_the_tracker_counts_what_lives_at_once():
    weight = torch.ones(1000)
    with memory.Tracker([weight]) as tracker:
        for _ in range(5):
            a = weight + 1  # 4,000 bytes
            b = a.view(10, 100) * 2  # as many; the view takes nothing
            del a, b
        away = torch.empty(10_000, device="cpu")
        away[:1000] = weight.view(1000)
    assert tracker.peak == 8000


@pytest.mark.parametrize("step", ["patches", "sets", "attribution"])
def test_a_pair_takes_no_more_memory_for_more_prompts(step, monkeypatch):
    monkeypatch.setattr(recording, "TREE_NODES", 300)
    monkeypatch.setitem(recording.BUDGET, "cpu", 600)
    words = tiny.tokenizer()
    model = Gemma2ForCausalLM.from_pretrained(tiny.legal_base(), attn_implementation="eager")
    model.eval().requires_grad_(False)
    peaks = {}
    for count in (8, 24):
        prompts = scenario_set()[:: 60 // count][:count]
        recordings = []
        for _ in range(2):
            model.model.layers[0].mlp.down_proj.weight.data += 0.02
            recordings.append(patching.record(model, words, prompts))
        sweep = patching.Sweep(model, *recordings, mode="output")
        names = [component.name for component in patching.components(model)]
        runs = {
            "patches": lambda sweep=sweep: patching.patch_each(sweep, share=0),
            "sets": lambda sweep=sweep, names=names: patching.patch_together(sweep, dict.fromkeys("abcdefgh", names)),
            "attribution": lambda sweep=sweep: patching.attribution_patching(sweep),
        }
        kept = [getattr(one, site) for one in recordings for site in (*recording.SITES, "w_o")]
        peaks[count] = memory.peak_of(runs[step], "cpu", memory.weights(model), kept)
    assert peaks[24] < 1.5 * peaks[8], f"three times the prompts: {peaks}"
