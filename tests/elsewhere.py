"""A device that is not there: tensors keep their real values on the CPU, and a mark says that they live elsewhere.

Under `Elsewhere` the name ``cuda`` works on any machine. What is made or moved there is marked, and all that is
computed from it; ``.device`` says so. Where an operation meets a marked and an unmarked tensor it raises as a GPU
would: a tensor that was made without its device, or numbers taken to NumPy without ``.cpu()``."""

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

CUDA = torch.device("cuda", 0)
FREE = {"to", "cpu", "cuda", "copy_", "__set__", "_has_compatible_shallow_copy_type"}
"""What may see tensors of both places."""
INDEXES = {"__getitem__", "__setitem__"}


def marked(value) -> bool:
    return getattr(value, "_elsewhere", False)


def mark(value, there: bool):
    if isinstance(value, torch.Tensor):
        value._elsewhere = there
    return value


def named(value) -> bool | None:
    """Is this the device elsewhere? None for what names no device."""
    if isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda"):
        return value.startswith("cuda")
    return value.type == "cuda" if isinstance(value, torch.device) else None


class Elsewhere(TorchFunctionMode):
    """See above."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name == "__get__":
            return self.attribute(function, args)
        flat, spec = tree_flatten((args, kwargs))
        tensors = [value for value in flat if isinstance(value, torch.Tensor)]
        wanted = self.wanted(name, args, kwargs, tensors)
        if name in ("numpy", "__array__") and marked(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if name not in FREE:
            self.compare(name, args, tensors)
        # in truth all is computed on the CPU
        if name == "cuda":
            function, args = torch.Tensor.cpu, args[:1]
        elif name == "to" or "device" in kwargs:
            flat, spec = tree_flatten((args, kwargs))
            args, kwargs = tree_unflatten(["cpu" if named(value) else value for value in flat], spec)
        result = function(*args, **kwargs)
        if name == "__set__":
            if isinstance(args[1], torch.Tensor):
                mark(args[0], marked(args[1]))
            return result
        if name in ("to", "cpu", "cuda") and result is args[0]:
            if wanted == marked(result):
                return result
            result = result.view_as(result)  # what is moved is another tensor
        elif any(result is tensor for tensor in tensors):
            return result  # changed in place
        out, spec = tree_flatten(result)
        return tree_unflatten([mark(value, wanted) for value in out], spec)

    def attribute(self, function, args):
        """``.device`` and its like of a tensor."""
        value = function(*args)
        if isinstance(value, torch.device):
            return CUDA if marked(args[0]) else value
        if isinstance(value, torch.Tensor) and value is not args[0]:
            mark(value, marked(args[0]))
        return marked(args[0]) if function is torch.Tensor.is_cuda.__get__ else value

    def wanted(self, name, args, kwargs, tensors) -> bool:
        """Where the result lives."""
        asked = [named(value) for value in (kwargs.get("device"), *(args[1:] if name == "to" else ()))]
        asked = [value for value in asked if value is not None]
        if name in ("cpu", "cuda"):
            return name == "cuda"
        if asked:
            return asked[0]
        if name == "to" and len(tensors) > 1:
            return marked(tensors[1])
        return any(map(marked, tensors))

    def compare(self, name, args, tensors) -> None:
        """Raise where tensors of both places meet; single numbers may, and indices on the CPU."""
        here = [tensor for tensor in tensors if not marked(tensor) and tensor.dim() > 0]
        there = [tensor for tensor in tensors if marked(tensor)]
        if name in INDEXES and args and marked(args[0]):
            here = [tensor for tensor in here if tensor.dtype not in (torch.long, torch.bool, torch.int)]
            here = [] if name == "__getitem__" else here
        if here and there:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {name} found at least two devices, cpu and cuda:0!"
            )


@contextlib.contextmanager
def elsewhere(monkeypatch):
    """A machine with a card, as a program sees it: ``model.device: cuda`` puts a model there."""
    monkeypatch.setattr("rewired.models._device", lambda profile: CUDA)
    with Elsewhere():
        yield
