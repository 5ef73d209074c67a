"""The matrix-multiply floor: the products that an exact sweep over all heads and MLPs cannot avoid, divided by the rate
at which this machine multiplies matrices."""

import time

import torch


def rate(device: str, dtype: str, tries: int = 5) -> float:
    """Floating-point operations per second of a large square product: the best of a few tries."""
    n = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    best = float("inf")
    for _ in range(tries + 1):
        if device != "cpu":
            torch.cuda.synchronize()
        before = time.perf_counter() if device != "cpu" else time.process_time()
        a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() if device != "cpu" else time.process_time()) - before)
    return 2 * n**3 / best


def operations(shape: dict, rows) -> float:
    """Mean floating-point operations of a patch, when prompts share their beginnings.

    Layers below a component are not run. In its own layer a head needs o_proj and the MLP, an MLP nothing; every later
    layer is run whole, but for the last: there keys and values at every node, the rest where the decision is read."""
    d, ff, depth = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    q = d * shape["num_attention_heads"] * shape["head_dim"]
    kv, mlp = 2 * d * shape["num_key_value_heads"] * shape["head_dim"], 3 * d * ff
    nodes = {tuple(row[: p + 1]): p for row in rows for p in range(len(row) - 1)}  # distinct beginnings
    lengths = [*nodes.values(), *(len(row) - 1 for row in rows)]  # each decision step is its own
    ends = [len(row) - 1 for row in rows]
    width = 2 * shape["num_attention_heads"] * shape["head_dim"]  # scores and their use
    kinds = shape["layer_types"] or ["full_attention"] * depth

    def attention(layer: int, positions) -> int:
        window = shape["sliding_window"] if kinds[layer] == "sliding_attention" else None
        return width * sum(min(p + 1, window or p + 1) for p in positions)

    def whole(layer: int) -> int:
        if layer < depth - 1:
            return len(lengths) * (2 * q + kv + mlp) + attention(layer, lengths)
        return len(lengths) * kv + len(ends) * (2 * q + mlp) + attention(layer, ends)

    total = 0
    for layer in range(depth):
        later = sum(whole(k) for k in range(layer + 1, depth))
        own = (len(lengths) if layer < depth - 1 else len(ends)) * (q + mlp)
        total += shape["num_attention_heads"] * (own + later) + later
    return 2 * total / (depth * (shape["num_attention_heads"] + 1) * len(rows))
