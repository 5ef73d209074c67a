"""One copy of the base, many variants: loading models and switching between them exactly.

A variant is the base plus a LoRA adapter: next to each weight matrix W lies a low-rank update B·A, and the layer
computes W·x + scale·B·A·x. The two are never added together. Merging would round the update away in half precision
(the study lost its effect that way); kept apart, switching an adapter off gives the base back bit for bit, and all
variants share one copy of W in memory.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from rewired.errors import RewiredError, choice
from rewired.profiles import ROOT, Profile, results_dir

ADAPTER = "adapter_model.safetensors"
LICENCE_PAGE = "https://huggingface.co/{}"


def device_of(profile: Profile) -> torch.device:
    """The device a profile asks for; ``auto`` is CUDA where there is one. RewiredError for CUDA where there is none."""
    wanted = profile.model.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RewiredError(
            "The profile sets model.device to cuda, but torch sees no CUDA device here. Set it to auto or cpu, for "
            "example with --set model.device=cpu, or install a CUDA build of the torch version in requirements.lock."
        )
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)


def load_base(profile: Profile):
    """(model, tokenizer) of the profile's base, in evaluation mode, its parameters frozen, with eager attention.

    Weights come from safetensors only and no code of the model's folder is run. Raises RewiredError, with what to do,
    when the folder is missing or damaged, or the model hub cannot be reached or refuses."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    path = profile.model.path
    folder = next((p for p in (Path(path).expanduser(), ROOT / path) if p.is_dir()), None)
    if folder is None and (path.count("/") != 1 or path.startswith((".", "/", "~", "models/"))):
        raise RewiredError(
            f"The model folder {path!r} (model.path in profile {profile.name!r}) does not exist. Name a folder that "
            "holds config.json, the tokenizer and *.safetensors, or a hub id such as google/gemma-2-2b-it; the small "
            "base of the book is models/pocket, and `python -m rewired rebuild-base` makes it anew."
        )
    source = str(folder or path)
    device, dtype = device_of(profile), getattr(torch, profile.model.dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation="eager",  # Gemma-2 caps its attention logits, which the fused kernels cannot
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # each library underneath has its own exceptions for the same few causes
        raise RewiredError(_why_not(profile, folder, error)) from error
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if lacking:
        raise RewiredError(
            f"The weights in {source} do not fit its config.json: {len(lacking)} tensors are missing or of another "
            f"shape, {lacking[0]} among them. The folder is incomplete or damaged; fetch or rebuild it."
        )
    return model.to(device).eval().requires_grad_(False), tokenizer


def _why_not(profile: Profile, folder: Path | None, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    if folder is not None:
        return (
            f"The model in {folder} (model.path in profile {profile.name!r}) cannot be read: {reason} The folder must "
            "hold config.json, the tokenizer and whole *.safetensors files (no pickled weights, no code of its own). "
            "Fetch it again; for the book's own base, `git checkout models/pocket` restores it."
        )
    page = LICENCE_PAGE.format(profile.model.path)
    return (
        f"The model {profile.model.path!r} (model.path in profile {profile.name!r}) cannot be fetched: {reason} "
        f"If it is gated, accept its licence at {page} and put an access token in the environment variable HF_TOKEN. "
        "Without network, download it elsewhere and name its folder: --set model.path=<folder>."
    )


def fingerprint(model) -> str:
    """A short hash that tells two bases apart: every parameter's name and shape and 256 of its values, in fp32.

    Adapters do not enter, so it is the same with and without them."""
    digest = hashlib.sha256()
    network = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name, value in sorted((n.replace(".base_layer.", "."), p) for n, p in network.named_parameters()):
        if "lora_" in name:
            continue
        flat = value.detach().reshape(-1)
        picked = flat[torch.linspace(0, flat.numel() - 1, 256, dtype=torch.float64).long().to(flat.device)]
        digest.update(f"{name} {tuple(value.shape)} ".encode() + picked.float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def file_hash(path: Path) -> str:
    """sha256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_dir(profile: Profile, variant: str, seed: int) -> Path:
    """Where a run's adapter and tables live."""
    return results_dir(profile) / "runs" / f"{variant}-{seed}"


def checkpoint_name(episode: int) -> str:
    """The folder of the adapter as it was after so many episodes, in a run's ``checkpoints``."""
    return f"episode-{episode:06d}"


class Study:
    """A profile's base and its trained variants.

    >>> study = Study(profile)
    >>> with study.variant("utilitarian", seed=1) as model:
    ...     measure(model, study.tokenizer, prompts)

    ``model`` is the same plain causal language model at all times: adapters are put into its linear layers when first
    asked for, and ``variant`` switches them on and, on leaving, restores what was on before."""

    def __init__(self, profile: Profile):
        self.profile = profile
        self.model, self.tokenizer = load_base(profile)
        self.fingerprint = fingerprint(self.model)
        self._peft = None  # the wrapper that holds the adapters, once there is one
        self._active: str | None = None

    def run_dir(self, variant: str, seed: int) -> Path:
        """The folder of a run."""
        return run_dir(self.profile, variant, seed)

    def runs(self) -> list[tuple[str, int]]:
        """(variant, seed) of every finished run, in the profile's order of variants."""
        found = [file.parent.name.rpartition("-") for file in results_dir(self.profile).glob("runs/*-*/run.json")]
        pairs = [(variant, int(seed)) for variant, _, seed in found if seed.isdigit() and not variant.startswith(".")]
        order = {variant: k for k, variant in enumerate(self.profile.training.variants)}
        return sorted(pairs, key=lambda pair: (order.get(pair[0], len(order)), *pair))

    def checkpoints(self, variant: str, seed: int) -> list[int]:
        """The episodes after which the run kept its adapter, in order."""
        return sorted(int(name.rpartition("-")[2]) for name in check_run(self, variant, seed)["checkpoints"])

    @contextmanager
    def variant(self, name: str, seed: int = 1, episode: int | None = None) -> Iterator[torch.nn.Module]:
        """The model as that variant: ``"base"``, or a variant and the seed of its run, at the end of training or as it
        was after ``episode`` (one of ``checkpoints``, which are forgotten after use). May be nested."""
        before, known = self._active, self._loaded()
        wanted = None if name == "base" else self._load(name, seed, episode)
        self._switch(wanted)
        try:
            yield self.model
        finally:
            if episode is not None and wanted in self._loaded() - known:
                self._forget(wanted)
            self._switch(before)

    def _loaded(self) -> set[str]:
        return set(self._peft.peft_config) if self._peft is not None else set()

    def _forget(self, adapter: str) -> None:
        """Gives the adapter's memory back: a run may have kept dozens of checkpoints."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that another adapter is on now; `_switch` decides that
            self._peft.delete_adapter(adapter)
        self._peft.requires_grad_(False)

    def _switch(self, adapter: str | None) -> None:
        if self._peft is not None:
            if adapter is None:
                self._peft.base_model.disable_adapter_layers()
            else:
                self._peft.base_model.enable_adapter_layers()
                self._peft.set_adapter(adapter, inference_mode=True)
        self._active = adapter

    def _load(self, variant: str, seed: int, episode: int | None = None) -> str:
        """Puts the run's adapter beside the others, once; returns its name."""
        from peft import PeftModel

        run, name = self.run_dir(variant, seed), f"{variant}-{seed}"
        folder = run / "adapter" if episode is None else run / "checkpoints" / checkpoint_name(episode)
        name += "" if episode is None else f"-{checkpoint_name(episode)}"
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
            raise RewiredError(f"The adapter {folder} cannot be loaded: {reason} {_again(run)}") from error
        self._peft.requires_grad_(False).eval()
        return name


def check_run(study: Study, variant: str, seed: int, episode: int | None = None) -> dict:
    """What ``run.json`` says of the run. RewiredError unless there is such a run, whole, and trained on this base; with
    ``episode``, unless it kept that checkpoint, whole."""
    folder, profile = study.run_dir(variant, seed), study.profile
    known = ["base", *profile.training.variants]
    if variant not in known and variant not in {name for name, _ in study.runs()}:
        raise choice("variant", variant, known, "Variants are rewards in lib/rewired/games.py; the profile lists them.")
    if not (folder / "run.json").is_file():
        done = ", ".join(f"{name}-{number}" for name, number in study.runs()) or "none"
        raise RewiredError(
            f"There is no run of {variant!r} with seed {seed} in profile {profile.name!r}; finished runs: {done}. "
            f"Train it with `python -m rewired train --profile {profile.name} --variant {variant} --seed {seed}`."
        )
    try:
        run = json.loads((folder / "run.json").read_text())
        base, kept = run["base"], {"adapter": run["adapter"]}
        kept |= {f"checkpoints/{name}": content for name, content in run["checkpoints"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise RewiredError(f"The file {folder / 'run.json'} is damaged ({error!r}). {_again(folder)}") from None
    wanted = "adapter" if episode is None else f"checkpoints/{checkpoint_name(episode)}"
    if wanted not in kept:
        raise choice(f"checkpoint of {variant}-{seed}:", wanted, [name for name in kept if name != "adapter"])
    weights = folder / wanted / ADAPTER
    if not weights.is_file() or file_hash(weights) != kept[wanted]:
        raise RewiredError(f"The adapter {weights} is missing, damaged or not the one the run wrote. {_again(folder)}")
    if base != study.fingerprint:
        raise RewiredError(
            f"The adapter in {folder} was trained on another base (fingerprint {base}) than the model of profile "
            f"{profile.name!r} (fingerprint {study.fingerprint}, {profile.model.path}). {_again(folder)}"
        )
    return run


def _again(folder: Path) -> str:
    return f"Delete {folder} and run `make book` to train it again."
