"""Low-rank adapters, whatever they are trained on: where they sit and what is written of them.

LoRA (Hu et al. 2021, arXiv:2106.09685) learns a small update beside a weight matrix W: the layer computes
W x + (alpha / rank) B A x. B starts at zero, so a new adapter changes nothing. The profile says which linear modules
(``training.modules``) of which layers (``training.layers``) get one; null means all.
"""

import hashlib
import json
import math
from pathlib import Path

import torch

from rewired.errors import RewiredError, choice
from rewired.profiles import Training

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
MODULES = (*ATTENTION, *MLP)
"""The linear modules of a layer: four of attention, three of the MLP."""


def stream(root: int, name: str, seed: int) -> int:
    """The number from which all random streams of a run derive; no two names or seeds share one."""
    return int.from_bytes(hashlib.sha256(f"{root}/{name}/{seed}".encode()).digest()[:4], "big")


def add_adapter(model, training: Training):
    """The model with a new, trainable adapter of rank ``training.lora_rank`` in the chosen places: a PEFT model.

    Raises RewiredError for a module or a layer that the model does not have."""
    from peft import LoraConfig, get_peft_model

    count = model.config.num_hidden_layers
    for name in training.modules or ():
        if name not in MODULES:
            raise choice("module in training.modules:", name, MODULES, "null stands for all of them.")
    for number in training.layers or ():
        if number >= count:
            raise RewiredError(
                f"training.layers names layer {number}, but the model has {count} layers, 0 to {count - 1}. Set, for "
                f"example, training.layers=[{count - 1}], or null for all of them."
            )
    modules = list(training.modules or MODULES)
    layers = list(training.layers) if training.layers else None  # None: all of them
    size = {"r": training.lora_rank, "lora_alpha": training.lora_alpha, "lora_dropout": training.lora_dropout}
    settings = LoraConfig(task_type="CAUSAL_LM", target_modules=modules, layers_to_transform=layers, **size)
    return get_peft_model(model, settings)


def half_precision(device: torch.device, bf16: bool):
    """Matrix products in bf16, if ``bf16`` says so and the processor has it; weights and sums stay in fp32.
    Casts are not cached: a cache would keep serving the adapter as it was at the first update."""
    cpu = device.type == "cpu"
    able = torch.cpu._is_avx512_bf16_supported() if cpu else torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and able, cache_enabled=False)


REMEDY = "Lower training.learning_rate (or raise training.kl), for example with --set training.learning_rate=5e-4"


def diverged(what: str, remedy: str = REMEDY) -> RewiredError:
    """The error for a training whose numbers stop being numbers; the remedy names the key that its reader can turn."""
    return RewiredError(f"Training diverged: {what}. Nothing was written. {remedy}, and start again.")


def descend(loss: torch.Tensor, optimiser: torch.optim.Optimizer, step: int, remedy: str) -> float:
    """One step of the optimiser down the gradient, clipped to length 1; the loss, as a number. A loss that depends on
    no weight changes nothing. RewiredError where it is not a number, before any weight is touched."""
    value = loss.item()
    if not math.isfinite(value):
        raise diverged(f"the loss became {value} at step {step}", remedy)
    if loss.requires_grad:
        loss.backward()
        torch.nn.utils.clip_grad_norm_([weight for group in optimiser.param_groups for weight in group["params"]], 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return value


def save_adapter(policy, folder: Path, base: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors: the same bytes for the same adapter.

    ``base`` is the path or hub id of the model underneath, as the profile names it."""
    policy.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card: the same for every adapter
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    config["base_model_name_or_path"] = base
    config["target_modules"] = sorted(config["target_modules"])  # PEFT keeps a set, in no order
    write_json(file, config)


def write_json(file: Path, content: dict) -> None:
    """Indented, keys in order: the same bytes for the same content."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def cast_adapter(policy, dtype: torch.dtype) -> None:
    """An adapter is trained in fp32 and kept as precise as its base."""
    for name, value in policy.named_parameters():
        if "lora_" in name:
            value.data = value.data.to(dtype)
