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
from rewired.tracing.capture import BATCH_SIZE, anatomy, capture, encode, read_out


@torch.no_grad()
def trajectories(
    model,
    tokenizer,
    prompts: Sequence[Prompt],
    labels: Labels | Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
) -> pd.DataFrame:
    """One row per prompt, position (``"decision"``, ``"prompt_end"``) and depth: prompt_id, scenario, position, depth
    (0 to the number of layers), ``delta`` and ``delta_raw`` (logits; negative = cooperate).

    At ``"prompt_end"`` the labels' last tokens are compared one step too early, as the study did. ``labels`` asks about
    another pair. Raises RewiredError for labels that are not a shared prefix plus one token."""
    parts, encoded = anatomy(model), encode(tokenizer, prompts, labels)
    steps = [(end, len(row) - 1) for end, row in zip(encoded.ends, encoded.rows, strict=True)]
    found = capture(model, encoded.rows, ("resid_pre", "resid_final"), None, steps, batch_size)
    stream = torch.cat([found["resid_pre"], found["resid_final"]]).unflatten(1, (len(prompts), 2))
    delta, raw = read_out(parts, stream.transpose(1, 2), encoded)  # [depth, position, prompt]
    frames = []
    for k, position in enumerate(("prompt_end", "decision")):
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
        delta, depth = path["delta"].to_numpy(), path["depth"].to_numpy()
        far = abs(delta - delta[-1]) > share * (delta.max() - delta.min())
        other = (delta > 0) != (delta[-1] > 0)
        first = [int(depth[off.nonzero()[0][-1] + 1]) if off.any() else int(depth[0]) for off in (far, other)]
        rows.append({**dict(zip(by, key, strict=True)), "stabilizes": first[0], "decided": first[1]})
    return pd.DataFrame(rows)
