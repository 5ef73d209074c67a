"""The logit lens: what would the model decide if it stopped here?

The residual stream at depth k is sent straight to the final norm (recomputed for that depth) and to the unembedding
rows of the two labels. Depth 0 is the embedding, depth k the stream after k layers; at the last depth the lens is the
model itself. At the decision step this is the decision in the making. At the end of the prompt, one position earlier,
the next token is the labels' common beginning and not yet the choice: a second view that asks what is already there.
"""

from collections.abc import Sequence

import numpy as np
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


def stabilization(table: pd.DataFrame, by: Sequence[str] = ("prompt_id",), share: float = 0.2) -> pd.DataFrame:
    """Where a trajectory settles. ``table`` has columns depth, delta and ``by``; one row per group:

    ``stabilizes``  the smallest depth from which on delta stays within ``share`` of its whole range (largest minus
                    smallest value over all depths) of its last value
    ``decided``     the smallest depth from which on delta has the sign of its last value"""
    rows = []
    for key, group in table.groupby(list(by), sort=False):
        path = group.sort_values("depth")
        depth, delta = path["depth"].to_numpy(), path["delta"].to_numpy()  # each [depth]
        far = abs(delta - delta[-1]) > share * (delta.max() - delta.min())
        other_side = (delta > 0) != (delta[-1] > 0)
        row = dict(zip(by, key, strict=True))
        rows.append({**row, "stabilizes": _after(depth, far), "decided": _after(depth, other_side)})
    return pd.DataFrame(rows)


def _after(depth: np.ndarray, off: np.ndarray) -> int:
    """The first depth after the last one that is ``off``."""
    return int(depth[off.nonzero()[0][-1] + 1]) if off.any() else int(depth[0])
