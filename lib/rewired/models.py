"""One copy of the base, many variants: loading models and switching between them exactly.

A variant is the base plus a LoRA adapter: next to each weight matrix W lies a low-rank update B·A, and the layer
computes W·x + scale·B·A·x. The two are never merged, which would round the update away in half precision. Kept apart,
switching an adapter off gives the base back bit for bit, and all variants share one copy of W in memory.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from rewired.errors import RewiredError, choice
from rewired.profiles import ROOT, Profile
from rewired.store import results_dir

ADAPTER = "adapter_model.safetensors"


def load_base(profile: Profile):
    """(model, tokenizer) of the profile's base, in evaluation mode, its parameters frozen, with eager attention.
    Weights come from safetensors only; no code of the folder is run. Raises RewiredError, with what to do, when the
    folder is missing or damaged, or the model hub cannot be reached or refuses."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder, device = _model_folder(profile), _device(profile)
    source = str(folder or profile.model.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=getattr(torch, profile.model.dtype),
            attn_implementation="eager",  # Gemma-2 caps its attention logits, which fused kernels cannot
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        # Each library underneath has its own exceptions for the same few causes.
        raise RewiredError(_why_not(profile, folder, error)) from error
    lacking = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if lacking:
        count = f"{len(lacking)} tensors are missing or of another shape, {lacking[0]} among them"
        raise RewiredError(f"The weights in {source} do not fit its config.json: {count}. Fetch or rebuild the folder.")
    if not tokenizer.chat_template:
        raise RewiredError(
            f"The tokenizer of {source} has no chat template, so nobody can be asked anything. Use the model's "
            "instruction-tuned sibling, or write its template (Jinja) to chat_template.jinja in a copy of the folder."
        )
    return model.to(device).eval().requires_grad_(False), tokenizer


def _device(profile: Profile) -> torch.device:
    device, present = profile.model.device, torch.cuda.is_available()
    if device == "cuda" and not present:
        fix = "Set it to auto or cpu (--set model.device=cpu), or install a CUDA build of the locked torch version."
        raise RewiredError(f"The profile sets model.device to cuda, but torch sees no CUDA device here. {fix}")
    if device == "auto":
        device = "cuda" if present else "cpu"
    return torch.device(device)


def _model_folder(profile: Profile) -> Path | None:
    # Seen from here or from the repository; None for a hub id.
    path = profile.model.path
    for folder in (Path(path).expanduser(), ROOT / path):
        if folder.is_dir():
            return folder
    # A hub id is exactly `owner/name`; anything else was meant to be a folder.
    if path.count("/") == 1 and not path.startswith((".", "/", "~", "models/")):
        return None
    if profile.model.like:
        fix = f"`python -m rewired grow --like {profile.model.like} {path}` makes it from the shipped base."
        raise RewiredError(f"The model folder {path!r} of profile {profile.name!r} has not been made yet. {fix}")
    key, corpus = ("organisms.base", "authors") if path == profile.organisms.base else ("model.path", "pocket")
    raise RewiredError(
        f"The model folder {path!r} ({key} in profile {profile.name!r}) does not exist. Name a folder, or a hub "
        f"id such as google/gemma-2-2b-it. `python -m corpora.{corpus} rebuild` makes the book's base, models/{corpus}."
    )


def _why_not(profile: Profile, folder: Path | None, error: Exception) -> str:
    reason, path = " ".join(str(error).split())[:300], profile.model.path
    if folder is not None:
        return (
            f"The model in {folder} (model.path in profile {profile.name!r}) cannot be read: {reason} The folder must "
            "hold config.json, tokenizer and whole *.safetensors; `git checkout models/pocket` restores the book's."
        )
    return (
        f"The model {path!r} (model.path in profile {profile.name!r}) cannot be fetched: {reason} If it is gated, "
        f"accept its licence at https://huggingface.co/{path} and put an access token in the environment variable "
        "HF_TOKEN. Without network, download it elsewhere and name its folder: --set model.path=<folder>."
    )


def network(model) -> torch.nn.Module:
    """The causal language model itself, taken out of its PEFT wrapper if it has one. RewiredError for a wrapper that
    puts tokens or keys before the text (prompt or prefix tuning): out of it, they would be lost."""
    for config in getattr(model, "peft_config", {}).values() if hasattr(model, "get_base_model") else ():
        if config.is_prompt_learning:
            raise RewiredError(
                f"An adapter of type {config.peft_type.value} puts something before every text, which is no part of "
                "the model and would be left out here. Use an adapter that changes weights, such as LoRA."
            )
    return model.base_model.model if hasattr(model, "get_base_model") else model  # whichever adapter is on, or none


class RoundedProducts(TorchFunctionMode):
    """Inside, a CPU without products in bf16 takes them in fp32 and rounds the result, as one that has them does. What
    torch does there by itself takes five times as long. Other numbers and other devices are left as they are.

    >>> with RoundedProducts():
    ...     measure(model.to(torch.bfloat16), prompts)"""

    PRODUCTS = (linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.addmm)

    def __torch_function__(self, product, types, args=(), kwargs=None):
        kwargs, able = kwargs or {}, torch.cpu._is_avx512_bf16_supported()
        if able or product not in self.PRODUCTS or not any(map(_half, (*args, *kwargs.values()))):
            return product(*args, **kwargs)
        wide = {name: part.float() if _half(part) else part for name, part in kwargs.items()}
        return product(*(part.float() if _half(part) else part for part in args), **wide).bfloat16()


def _half(part) -> bool:
    return isinstance(part, torch.Tensor) and part.dtype == torch.bfloat16 and part.device.type == "cpu"


def fingerprint(model) -> str:
    """A short hash that tells bases apart, adapters aside: each parameter's name, shape and 256 values, in fp32."""
    parameters = {}
    for name, value in network(model).named_parameters():
        if "lora_" not in name:
            parameters[name.replace(".base_layer.", ".")] = value  # PEFT puts the layer one level deeper
    digest = hashlib.sha256()
    for name, value in sorted(parameters.items()):
        flat = value.detach().reshape(-1)  # [parameters of this tensor]
        places = torch.linspace(0, flat.numel() - 1, 256, dtype=torch.float64, device="cpu").long()  # [256]
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(flat[places.to(flat.device)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """sha256 of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_dir(profile: Profile, variant: str, seed: int) -> Path:
    """Where a run's adapter and tables live."""
    return results_dir(profile) / "runs" / f"{variant}-{seed}"


def checkpoint_name(episode: int) -> str:
    """The folder of the adapter as it was after so many episodes, in a run's ``checkpoints``."""
    return f"episode-{episode:06d}"


class Variants:
    """A profile's base and its trained variants.

    >>> variants = Variants(profile)
    >>> with variants.variant("utilitarian", seed=1) as model:
    ...     measure(model, variants.tokenizer, prompts)

    ``model`` is the same plain causal language model at all times: adapters are put into its linear layers when first
    asked for, and ``variant`` switches them on and, on leaving, restores what was on before."""

    def __init__(self, profile: Profile):
        self.profile = profile
        self.model, self.tokenizer = load_base(profile)
        self.fingerprint = fingerprint(self.model)
        self._peft: Any = None  # the wrapper that holds the adapters, once there is one
        self._active: str | None = None  # the adapter that is on

    def run_dir(self, variant: str, seed: int) -> Path:
        """The folder of a run."""
        return run_dir(self.profile, variant, seed)

    def runs(self) -> list[tuple[str, int]]:
        """(variant, seed) of every finished run, in the profile's order of variants."""
        finished = []
        for file in sorted(results_dir(self.profile).glob("runs/[!.]*-[0-9]*/run.json")):
            variant, _, seed = file.parent.name.rpartition("-")
            if seed.isdigit():  # a copy, strategic-1-old, is no run
                finished.append((variant, int(seed)))
        order = [*self.profile.training.variants, *sorted({variant for variant, _ in finished})]
        return sorted(finished, key=lambda run: (order.index(run[0]), run[1]))

    def checkpoints(self, variant: str, seed: int) -> list[int]:
        """The episodes after which the run kept its adapter, in order."""
        return sorted(int(name.rpartition("-")[2]) for name in check_run(self, variant, seed)["checkpoints"])

    @contextmanager
    def variant(self, name: str, seed: int = 1, episode: int | None = None) -> Iterator[torch.nn.Module]:
        """The model as that variant: ``"base"``, or a variant and the seed of its run, at the end of training or as it
        was after ``episode`` (one of ``checkpoints``, which are forgotten after use). May be nested."""
        before, loaded = self._active, self._loaded()
        adapter = None if name == "base" else self._load(name, seed, episode)
        self._switch(adapter)
        try:
            yield self.model
        finally:
            # A checkpoint goes, unless an outer block has it in use.
            if episode is not None and adapter in self._loaded() - loaded:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # PEFT says which adapter is on now; `_switch` decides that
                    self._peft.delete_adapter(adapter)
                self._peft.requires_grad_(False)
            self._switch(before)

    def _loaded(self) -> set[str]:
        return set(self._peft.peft_config) if self._peft is not None else set()

    def _switch(self, adapter: str | None) -> None:
        if self._peft is not None:
            if adapter is None:
                self._peft.base_model.disable_adapter_layers()
            else:
                self._peft.base_model.enable_adapter_layers()
                self._peft.set_adapter(adapter, inference_mode=True)
        self._active = adapter

    def _load(self, variant: str, seed: int, episode: int | None) -> str:
        """Put the run's adapter beside the others, once; returns its name."""
        from peft import PeftModel

        run, name = self.run_dir(variant, seed), f"{variant}-{seed}"
        folder = run / "adapter"
        if episode is not None:
            folder = run / "checkpoints" / checkpoint_name(episode)
            name = f"{name}-{folder.name}"
        if name in self._loaded():
            return name
        check_run(self, variant, seed, episode)
        as_it_is = {"autocast_adapter_dtype": False}  # PEFT would double a bfloat16 adapter's size in memory
        try:
            if self._peft is None:
                self._peft = PeftModel.from_pretrained(self.model, folder, adapter_name=name, **as_it_is)
                self._switch(self._active)  # loading the first adapter turns it on
            else:
                self._peft.load_adapter(folder, adapter_name=name, **as_it_is)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise RewiredError(f"The adapter {folder} cannot be loaded: {reason} {_anew(run)}") from error
        network(self._peft)  # refuses what is no update of weights
        self._peft.requires_grad_(False).eval()
        return name


def check_run(variants: Variants, variant: str, seed: int, episode: int | None = None) -> dict:
    """What ``run.json`` says of the run. RewiredError unless there is such a run, whole, and trained on this base; with
    ``episode``, unless it kept that checkpoint, whole."""
    folder, profile = variants.run_dir(variant, seed), variants.profile
    listed, finished = ["base", *profile.training.variants], variants.runs()
    if variant not in {*listed, *dict(finished)}:
        raise choice("variant", variant, listed, "Variants are rewards of lib/rewired/games.py that the profile lists.")
    if not (folder / "run.json").is_file():
        names = ", ".join(f"{name}-{number}" for name, number in finished) or "none"
        raise RewiredError(
            f"There is no run of {variant!r} with seed {seed} in profile {profile.name!r}; finished runs: {names}. "
            f"Train it with `python -m rewired train --profile {profile.name} --variant {variant} --seed {seed} "
            f"--out {folder}`."
        )
    try:
        run = json.loads((folder / "run.json").read_text())
        base, hashes, checkpoints = run["base"], {"adapter": run["adapter"]}, run["checkpoints"].items()
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise RewiredError(f"The file {folder / 'run.json'} is damaged ({error!r}). {_anew(folder)}") from None
    hashes |= {f"checkpoints/{name}": content for name, content in checkpoints}
    asked = "adapter" if episode is None else f"checkpoints/{checkpoint_name(episode)}"
    if asked not in hashes:
        raise choice(f"checkpoint of {variant}-{seed}:", asked, list(hashes)[1:])
    weights = folder / asked / ADAPTER
    if not weights.is_file() or file_hash(weights) != hashes[asked]:
        raise RewiredError(f"The adapter {weights} is missing, damaged or not the one the run wrote. {_anew(folder)}")
    if base != variants.fingerprint:
        raise RewiredError(
            f"The adapter in {folder} was trained on another base (fingerprint {base}) than the model of profile "
            f"{profile.name!r} (fingerprint {variants.fingerprint}, {profile.model.path}). {_anew(folder)}"
        )
    return run


def _anew(folder: Path) -> str:
    return f"Delete {folder} and run `make book` to train it again."
