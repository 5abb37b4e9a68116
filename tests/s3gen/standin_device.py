"""A GPU played on the CPU: its tensors refuse numpy, and refuse to meet tensors of the CPU, as CUDA's do.

They are the CPU's own under the name of another device. So values come out, and what the library does on CUDA alone is
done. What CUDA computes otherwise, and who waits for whom, is not played: see `test_device.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
_MOVES = {Tensor.to: (), Tensor.cpu: ("cpu",), Tensor.cuda: (DEVICE,)}


class StandinTensor(Tensor):
    """A tensor of the device; what is computed from it is another."""

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy


class StandinDevice(TorchFunctionMode):
    """Within it, the device is there: tensors may be made on it, and moved."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.pin_memory:
            return args[0]
        if func is Tensor.__iter__:  # or the rows would be the CPU's
            return iter(args[0].unbind(0))
        if func in _MOVES:
            return _moved(args[0], *args[1:], *_MOVES[func], **kwargs)
        _refuse_company(func, args, kwargs)
        if kwargs.get("device") is None:
            return func(*args, **kwargs)
        there = torch.device(kwargs.pop("device")).type == DEVICE.type
        return tree_map(lambda made: _placed(made, there), func(*args, device="cpu", **kwargs))


def on_standin(model: nn.Module) -> nn.Module:
    """The model, its weights and buffers now on the device."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update(
                {name: _placed(each.detach().clone(), True) for name, each in tensors.items() if each is not None}
            )
    return model


def _placed(made: Any, there: bool) -> Any:
    with torch._C.DisableTorchFunctionSubclass():  # or what is taken off the device would come back as a tensor of it
        return made.as_subclass(StandinTensor if there else Tensor) if isinstance(made, Tensor) else made


def _moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to` a device, a type, or both of another tensor; what else it takes changes no value."""
    there, dtype = isinstance(tensor, StandinTensor), tensor.dtype
    for arg in (*args, *kwargs.values()):
        if isinstance(arg, Tensor):
            there, dtype = isinstance(arg, StandinTensor), arg.dtype
        elif isinstance(arg, torch.dtype):
            dtype = arg
        elif isinstance(arg, str | torch.device):
            there = torch.device(arg).type == DEVICE.type
    recast = tensor.to(dtype)
    return recast if there == isinstance(tensor, StandinTensor) else _placed(recast.clone(), there)


def _refuse_company(func: Callable, args: tuple, kwargs: Mapping) -> None:
    if func is Tensor.copy_ or (func is Tensor.__getitem__ and isinstance(args[0], StandinTensor)):
        return  # CUDA does both across devices
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    of_the_cpu = [each for each in tensors if not isinstance(each, StandinTensor)]
    shapes = [tuple(each.shape) for each in of_the_cpu if each.dim()]  # a single number may come from anywhere
    if shapes and len(of_the_cpu) < len(tensors):
        name = getattr(func, "__name__", func)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} has {shapes} of the CPU, too")
