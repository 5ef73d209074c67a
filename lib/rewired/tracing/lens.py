"""The logit lens: what would the model decide if it stopped here?

The residual stream at depth k is sent straight to the final norm (recomputed for that depth) and to the unembedding
rows of the two labels. Depth 0 is the embedding, depth k the stream after k layers; at the last depth the lens is the
model itself. At the decision step this is the decision in the making. At the end of the prompt, one position earlier,
the next token is the labels' common beginning and not yet the choice: a second view that asks what is already there.
"""

from collections.abc import Sequence

import pandas as pd
import torch

from rewired.prompts import Labels, Prompt
from rewired.tracing.anatomy import anatomy
from rewired.tracing.capture import capture, encode, read_out

POSITIONS = ("prompt_end", "decision")


@torch.no_grad()
def trajectories(
    model, tokenizer, prompts: Sequence[Prompt], labels: Labels | Sequence[str] | None = None
) -> pd.DataFrame:
    """One row per prompt, position (``"decision"``, ``"prompt_end"``) and depth: prompt_id, scenario, position, depth
    (0 to the number of layers), ``delta`` and ``delta_raw`` (logits; negative = cooperate).

    At ``"prompt_end"`` the labels' last tokens are compared one step too early, as the study did. ``labels`` asks about
    another pair. Raises RewiredError for labels that are not a shared prefix plus one token."""
    parts, encoded = anatomy(model), encode(tokenizer, prompts, labels)
    steps = list(zip(encoded.ends, encoded.steps, strict=True))
    recorded = capture(model, encoded.rows, ("resid_pre", "resid_final"), steps)
    stream = torch.cat([recorded["resid_pre"], recorded["resid_final"]])  # [depth, prompt x position, d_model]
    stream = stream.unflatten(1, (len(prompts), len(POSITIONS))).transpose(1, 2)  # [depth, position, prompt, d_model]
    delta, raw = read_out(parts, stream, encoded)  # each [depth, position, prompt]
    frames = []
    for k, position in enumerate(POSITIONS):
        for depth in range(parts.depth + 1):
            values = {"delta": delta[depth, k].cpu().numpy(), "delta_raw": raw[depth, k].cpu().numpy()}
            frames.append(encoded.frame().assign(position=position, depth=depth, **values))
    return pd.concat(frames, ignore_index=True)
