"""Sparse features of hidden states: a sparse autoencoder (SAE) writes an activation as a sum of few of many directions.

BatchTopK (Bussmann et al. 2024, arXiv:2412.06410): of all latents of a batch of n tokens the n·k largest are kept, so a
token may have more than k of them or fewer. What a latent had to exceed, on average, becomes its threshold, and from
then on each token is encoded alone (the JumpReLU form). Latents that no longer fire learn to explain what the others
leave (the auxiliary loss of Gao et al. 2024, arXiv:2406.04093).
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn import Parameter
from torch.nn.functional import normalize

from rewired.errors import RewiredError
from rewired.store import atomic_dir

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"  # SAELens' names
IDLE = 20_000  # tokens without firing, after which a latent counts as dead


class BatchTopK(torch.nn.Module):
    """x ≈ f W_dec + b_dec, where f = (x - b_dec) W_enc + b_enc if that exceeds the latent's threshold, and else 0."""

    def __init__(self, d_model: int, width: int, device=None):
        super().__init__()
        self.W_dec = Parameter(normalize(torch.randn(width, d_model, device=device), dim=1))  # [latent, d_model]
        self.W_enc = Parameter(self.W_dec.detach().T.clone())  # [d_model, latent]
        self.b_enc = Parameter(torch.zeros(width, device=device))
        self.b_dec = Parameter(torch.zeros(d_model, device=device))
        self.register_buffer("threshold", torch.zeros(width, device=device))

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """Activations [..., d_model] -> latents [..., latent] before the threshold; none is negative."""
        return ((x - self.b_dec) @ self.W_enc + self.b_enc).relu()

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Activations [..., d_model] -> latents [..., latent], each token by itself."""
        f = self.before(x)
        return f * (f > self.threshold)

    def decode(self, f: torch.Tensor) -> torch.Tensor:
        """Latents [..., latent] -> activations [..., d_model]."""
        return f @ self.W_dec + self.b_dec


def train(x: torch.Tensor, width: int, k: int, steps=1_000, batch_size=512, rate=3e-3, seed=0) -> BatchTopK:
    """An SAE of ``width`` latents, ``k`` of them active on average, fitted to activations x [token, d_model]. While it
    learns, these are scaled to a mean norm of √d_model; its weights end up in the activations' own units."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sae = BatchTopK(x.shape[1], width, x.device)
        order = torch.randint(len(x), (steps, batch_size), device=x.device)  # [step, token]
    scale = x.shape[1] ** 0.5 / x.float().norm(dim=1).mean()
    sae.b_dec.data = scale * x.float().mean(dim=0)
    optimiser = torch.optim.Adam(sae.parameters(), lr=rate)
    idle = torch.zeros(width, device=x.device)  # [latent]: tokens since it fired
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * min(1.0, 5 * (1 - step / steps))  # falls over the last fifth
        batch = scale * x[order[step]].float()  # [token, d_model]
        before = sae.before(batch)  # [token, latent]
        least = before.flatten().topk(k * batch_size).values[-1].detach()
        f = before * (before >= least)  # [token, latent]
        idle = torch.where(f.any(dim=0), 0, idle + batch_size)
        error = batch - sae.decode(f)  # [token, d_model]
        loss = error.square().sum() + _revival(sae, before, error.detach(), idle > IDLE) / 32
        optimiser.zero_grad()
        (loss / batch_size).backward()
        optimiser.step()
        sae.W_dec.data = normalize(sae.W_dec.data, dim=1)
        sae.threshold += (0.01 if step else 1) * (least - sae.threshold)  # a running mean
    sae.W_enc.data *= scale
    sae.W_dec.data /= scale
    sae.b_dec.data /= scale
    return sae.requires_grad_(False)


def _revival(sae: BatchTopK, before: torch.Tensor, error: torch.Tensor, dead: torch.Tensor) -> torch.Tensor:
    """How badly a few ``dead`` latents alone explain what the others left, ``error`` [token, d_model]."""
    count = min(int(dead.sum()), error.shape[1] // 2)
    if count == 0:
        return error.new_zeros(())
    best = (before * dead).topk(count, dim=1)  # each [token, latent]
    f = torch.zeros_like(before).scatter(1, best.indices, best.values)  # [token, latent]
    return (error - f @ sae.W_dec).square().sum()


def quality(sae, x: torch.Tensor) -> dict[str, float]:
    """Of activations x [token, d_model]: ``fve``, the fraction of their variance explained; ``l0``, active latents a
    token; ``alive``, the share of latents active anywhere."""
    f = sae.encode(x.float())  # [token, latent]
    left, spread = (x - sae.decode(f)).square().sum(), (x - x.float().mean(dim=0)).square().sum()
    l0, alive = (f > 0).sum(dim=1).float().mean(), (f > 0).any(dim=0).float().mean()
    return {"fve": 1 - (left / spread).item(), "l0": l0.item(), "alive": alive.item()}


def save(sae: BatchTopK, folder: str | Path, model: str, site: str) -> None:
    """Write a folder in SAELens' layout, which sae-lens opens as a JumpReLU SAE; ``model`` and ``site`` are notes."""
    d_model, width = sae.W_enc.shape
    config = {"architecture": "jumprelu", "d_in": d_model, "d_sae": width, "dtype": "float32", "device": "cpu"}
    config |= {"apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none"}
    config["metadata"] = {"model_name": model, "hook_name": site}
    with atomic_dir(folder) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in sae.state_dict().items()}, temporary / WEIGHTS)
        (temporary / CONFIG).write_text(json.dumps(config, indent=1))


def load(folder: str | Path, device=None) -> BatchTopK:
    """The JumpReLU or standard SAE in a folder of SAELens' layout, of ours or not. RewiredError for another."""
    try:
        config = json.loads((Path(folder) / CONFIG).read_text())
        held = {name: value.float() for name, value in load_file(Path(folder) / WEIGHTS).items()}
        sae = BatchTopK(*held["W_enc"].shape)
        if not config.get("apply_b_dec_to_input", True):  # f = x W_enc + b_enc: the same with another b_enc
            held["b_enc"] = held["b_enc"] + held["b_dec"] @ held["W_enc"]
        sae.load_state_dict({"threshold": sae.threshold, **held})
        if config["architecture"] not in ("jumprelu", "standard") or config["normalize_activations"] not in (
            None,
            "none",
        ):
            raise ValueError(f"{config['architecture']}, normalize_activations {config['normalize_activations']}")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise RewiredError(
            f"{folder} holds no JumpReLU or standard SAE in SAELens' layout without normalisation ({error!r:.200}). "
            "features.train and features.save make one; features.read_published reads others."
        ) from error
    return sae.to(device).requires_grad_(False)


def read_published(release: str, name: str, device: str = "cpu", sparsify: bool = False):
    """A published SAE with ``encode`` and ``decode``, by sae-lens: its ``name`` in a release of sae-lens' list or a hub
    id; ``sparsify`` for EleutherAI's layout. RewiredError where sae-lens is missing or cannot read it."""
    try:
        from sae_lens import SAE
        from sae_lens.loading.pretrained_sae_loaders import sparsify_huggingface_loader
    except ImportError as error:
        raise RewiredError(
            f"The published SAE {name!r} of {release!r} takes sae-lens, which the lock leaves out (it pins an older "
            "transformer-lens): `pip install -e '.[published]'` in an environment of its own."
        ) from error
    try:
        return SAE.from_pretrained(release, name, device, converter=sparsify_huggingface_loader if sparsify else None)
    except Exception as error:  # sae-lens, the hub and the files beneath have their own for the same few causes
        raise RewiredError(
            f"The published SAE {name!r} of {release!r} cannot be read: {error!r:.300}. Name a release and an SAE of "
            "sae-lens' list, or a hub id that can be reached from here."
        ) from error
