"""What the book runs: `rewired.tracing.patching.patch_each`, all heads and MLPs, recordings and controls included."""

from . import hooks, pair


def prepare(job, folder, device, load=pair.merged):
    import geometries
    from transformers import AutoTokenizer

    from rewired.tracing import patching
    from rewired.tracing.recording import Component

    source, target = load(folder, device)
    prompts = geometries.prompts_of(geometries.GEOMETRIES[job["geometry"]])
    tokenizer = AutoTokenizer.from_pretrained(folder / "source")
    names = [Component(a, "head" if h >= 0 else "mlp", h).name for a, h in job["sample"]]

    def repeat():
        there = patching.record(source(), tokenizer, prompts)
        own = patching.record(target(), tokenizer, prompts)
        table, _ = patching.patch_each(patching.Sweep(target(), there, own))
        found = table.pivot(index="component", columns="prompt_id", values="delta_patched")
        return found.loc[names, [p.id for p in prompts]].to_numpy(), len(table)

    def reference():
        return hooks.sweep(target, hooks.record(source, job, device), job, device)

    if load is not pair.merged:  # the peers' reference is that of merged weights
        repeat.reference = reference
    return repeat
