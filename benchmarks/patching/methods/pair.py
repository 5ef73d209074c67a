"""Source and target as the PyTorch methods use them."""

from pathlib import Path

from transformers import AutoModelForCausalLM


def load(folder: Path, device: str):
    """A Hugging Face model, frozen, with the attention that Gemma-2 needs."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype="auto")
    return model.to(device).eval().requires_grad_(False)


def merged(folder: Path, device: str):
    """(source, target): functions that return the model in that state. Two whole models."""
    models = {name: load(folder / name, device) for name in ("source", "target")}
    return lambda: models["source"], lambda: models["target"]


def unmerged(folder: Path, device: str):
    """The same with one base and two adapters: asking for one switches the other off."""
    from peft import PeftModel

    model = load(folder / "base", device)
    wrapped = PeftModel.from_pretrained(model, folder / "one", adapter_name="one", autocast_adapter_dtype=False)
    wrapped.load_adapter(folder / "two", adapter_name="two", autocast_adapter_dtype=False)
    wrapped.eval().requires_grad_(False)

    def switch(name):
        wrapped.set_adapter(name)
        wrapped.requires_grad_(False)
        return model

    return lambda: switch("one"), lambda: switch("two")
