"""What an ONNX file holds of weights: its layers, in the order in which its graph computes them.

Exporters rename weights, transpose them, fold batch norms into convolutions and write a linear layer as two nodes.
Here each of these comes back as one layer with weights as torch keeps them. Nothing is run: no ONNX runtime is needed.

Format: https://github.com/onnx/onnx/blob/v1.16.0/docs/IR.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

_Array = np.ndarray[Any, np.dtype[Any]]
_EXTERNAL = 1  # of TensorProto.DataLocation
_BATCH_NORM_EPS = 1e-5  # when a node does not say, and in every model that is read here
_LIST_SHOWN = 4
_MOST_COPIES = 8  # of a file's bytes: halves become floats, and a weight may be read, turned and shared


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layer:
    """Weights of one layer, float32, as torch keeps them.

    Attributes:
        kind: "conv", "linear", "layer_norm" or "batch_norm".
        where: the node's name in the graph.
        weight: (out, in / groups, taps ...), (out, in) or (channels,).
        bias: (out,) or (channels,).
        mean, variance: (channels,), of a batch norm.
        stride, dilation: one for each axis, of a convolution.
    """

    kind: str
    where: str
    weight: Tensor
    bias: Tensor | None = None
    mean: Tensor | None = None
    variance: Tensor | None = None
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {tuple(self.weight.shape)} at {self.where!r}"


def read_layers(data: bytes, *, source: str, beside: Callable[[str], bytes]) -> list[Layer]:
    """Every layer of a graph, in its order.

    Args:
        data: the file.
        source: what to call it in errors.
        beside: reads a file of that name from the same folder, for weights that are kept outside.

    Raises:
        ImportError: the package onnx is not installed.
        ValueError: no ONNX file, or weights that are not where or what it says.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"reading {source} needs onnx: pip install onnx") from error
    try:
        graph = onnx.load_model_from_string(data).graph
    except Exception as error:  # a damaged or hostile file can make the parser raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{source} is no readable ONNX file: {reason}") from error
    reader = _Reader(source, len(data), _Outside(source, beside))
    del data  # as large as what was parsed from it
    for tensor in graph.initializer:
        reader.keep(tensor.name, tensor)
    for node in graph.node:
        if node.op_type in _NODES and node.output:
            _NODES[node.op_type](reader, node)
    return reader.layers


class _Outside:
    """Weights that a file keeps in others beside it.

    Attributes:
        sizes: of the files that were read, in bytes.
    """

    def __init__(self, source: str, beside: Callable[[str], bytes]) -> None:
        self.source, self.beside = source, beside
        self.sizes: dict[str, int] = {}
        self._last: tuple[str, bytes] = ("", b"")  # most keep all their weights in one

    def _read(self, location: str) -> bytes:
        if self._last[0] != location:
            self._last = ("", b"")  # there is room for one
            self._last = (location, self.beside(location))
            self.sizes[location] = len(self._last[1])
        return self._last[1]

    def values(self, tensor: Any) -> bytes:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location in ("", ".", "..") or PurePosixPath(location).name != location or "\\" in location:
            raise ValueError(
                f"{self.source} keeps {tensor.name!r} in {location!r}: weights must lie in a file of the same folder"
            )
        try:
            start, data = int(entries.get("offset", "0")), self._read(location)
            length = int(entries.get("length", len(data) - start))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.source} keeps {tensor.name!r} in {location!r}, unreadable: {error}") from error
        if start < 0 or length < 0 or start + length > len(data):
            raise ValueError(
                f"{self.source} keeps {tensor.name!r} in {location!r} at {start} .. {start + length}, "
                f"but that has {len(data)} bytes"
            )
        return data[start : start + length]


class _Reader:
    """Goes through a graph's nodes and puts together the layers they are the parts of."""

    def __init__(self, source: str, size: int, outside: _Outside) -> None:
        self.layers: list[Layer] = []
        self._source, self._outside, self._kinds = source, outside, _float_kinds()
        self._size, self._copied = size, 0  # bytes of the file, and of what was made of it
        # Arrays, or tensors of the file, whose values are read when a layer has them: only then are they there twice.
        self._constants: dict[str, Any] = {}
        self._products: dict[str, int] = {}  # outputs of linear layers whose bias may follow, to their place
        self._scaled: dict[str, _Array] = {}  # outputs of products with a vector, which may begin a layer norm's end

    def keep(self, name: str, tensor: Any) -> None:
        """Remember a tensor of the file, if it is one of floats."""
        if tensor.data_type in self._kinds:
            self._constants[name] = tensor

    def _values(self, tensor: Any) -> _Array:
        values = self._stored(tensor)
        self._spend(values.nbytes)
        return values

    def _stored(self, tensor: Any) -> _Array:
        from onnx import numpy_helper

        shape, kind = tuple(tensor.dims), self._kinds[tensor.data_type]
        try:
            if tensor.data_location == _EXTERNAL:
                return np.frombuffer(self._outside.values(tensor), dtype=kind).reshape(shape)
            if tensor.HasField("raw_data") and len(tensor.raw_data) != math.prod(shape) * kind.itemsize:
                raise ValueError(f"{len(tensor.raw_data)} bytes for {shape} of {kind}")
            values: _Array = numpy_helper.to_array(tensor)
            return values.reshape(shape)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{self._source}: the weights of {tensor.name!r} are damaged: {error}") from error

    def constant(self, node: Any) -> None:
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.HasField("t"):
                self.keep(node.output[0], attribute.t)

    def same(self, node: Any) -> None:
        """Identity and Cast: exporters store equal weights once, under the name of the first."""
        if node.input and (values := self._constants.get(node.input[0])) is not None:
            self._constants[node.output[0]] = values

    def transpose(self, node: Any) -> None:
        if (values := self._find(node, 0)) is not None:
            order = _integers(node, "perm") or tuple(reversed(range(values.ndim)))
            if sorted(order) != list(range(values.ndim)):
                raise ValueError(f"{self._source}: {node.name!r} permutes {values.ndim} axes by {order}")
            self._constants[node.output[0]] = values.transpose(order)

    def conv(self, node: Any) -> None:
        weight = self._find(node, 1)
        if weight is None or weight.ndim < 3:
            return
        axes = weight.ndim - 2
        stride = _integers(node, "strides") or (1,) * axes
        dilation = _integers(node, "dilations") or (1,) * axes
        bias = self._vector(node, 2, weight.shape[0])
        self._add("conv", node, weight, bias, stride=stride, dilation=dilation)

    def product(self, node: Any) -> None:
        """MatMul: the weight is transposed, the bias is another node's."""
        weight = self._find(node, 1)
        if weight is not None and weight.ndim == 2:
            self._products[node.output[0]] = len(self.layers)
            self._add("linear", node, weight.T, None)

    def affine(self, node: Any) -> None:
        """Gemm: both in one node."""
        weight = self._find(node, 1)
        if weight is None or weight.ndim != 2:
            return
        numbers = {attribute.name: attribute.f for attribute in node.attribute if attribute.name in ("alpha", "beta")}
        if any(value != 1 for value in numbers.values()):
            raise ValueError(f"{self._source}: {node.name!r} scales its product: {numbers}")
        weight = weight if any(a.name == "transB" and a.i for a in node.attribute) else weight.T
        self._add("linear", node, weight, self._vector(node, 2, weight.shape[0]))

    def batch_norm(self, node: Any) -> None:
        parts = [self._find(node, place) for place in range(1, 5)]
        if any(part is None or part.ndim != 1 for part in parts):
            return
        eps = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), _BATCH_NORM_EPS)
        if not math.isclose(eps, _BATCH_NORM_EPS, rel_tol=1e-3):
            raise ValueError(f"{self._source}: the batch norm {node.name!r} adds {eps:g}, not {_BATCH_NORM_EPS:g}")
        weight, bias, mean, variance = (self._tensor(part) for part in parts if part is not None)
        layer = Layer(
            kind="batch_norm", where=node.name, weight=weight, bias=bias, mean=mean, variance=variance
        )  # fmt: skip
        self.layers.append(layer)

    def layer_norm(self, node: Any) -> None:
        weight = self._find(node, 1)
        if weight is not None and weight.ndim == 1:
            self._add("layer_norm", node, weight, self._vector(node, 2, len(weight)))

    def scale(self, node: Any) -> None:
        """Mul by a vector: before opset 17, a layer norm ends with this and a sum."""
        for place in (0, 1):
            values = self._find(node, place)
            if values is not None and values.ndim == 1 and len(values) > 1:
                self._scaled[node.output[0]] = values

    def sum(self, node: Any) -> None:
        """Add of a vector: a linear layer's bias, or the end of a layer norm."""
        for place in (0, 1):
            bias, other = self._find(node, place), node.input[1 - place] if len(node.input) == 2 else ""
            if bias is None or bias.ndim != 1:
                continue
            if other in self._products and len(bias) == len(self.layers[self._products[other]].weight):
                at = self._products.pop(other)
                self.layers[at] = replace(self.layers[at], bias=self._tensor(bias))
            elif other in self._scaled and bias.shape == self._scaled[other].shape:
                self._add("layer_norm", node, self._scaled.pop(other), bias)

    def _add(self, kind: str, node: Any, weight: _Array, bias: _Array | None, **more: Any) -> None:
        made = None if bias is None else self._tensor(bias)
        self.layers.append(Layer(kind=kind, where=node.name, weight=self._tensor(weight), bias=made, **more))

    def _tensor(self, values: _Array) -> Tensor:
        self._spend(values.size * np.dtype(np.float32).itemsize)
        return torch.from_numpy(np.array(values, dtype=np.float32, order="C"))

    def _spend(self, size: int) -> None:
        """ValueError: more was made of the file than any model needs, as when thousands of nodes name one weight."""
        self._copied += size
        there = self._size + sum(self._outside.sizes.values())
        if self._copied > _MOST_COPIES * there:
            raise ValueError(
                f"{self._source} uses its weights over and over: {there} bytes unfold to more than {_MOST_COPIES} "
                "times as many, which no model of CosyVoice2 does"
            )

    def _find(self, node: Any, place: int) -> _Array | None:
        """The constant that is this input of a node, if it is one."""
        found = self._constants.get(node.input[place]) if place < len(node.input) else None
        return found if found is None or isinstance(found, np.ndarray) else self._values(found)

    def _vector(self, node: Any, place: int, length: int) -> _Array | None:
        values = self._find(node, place)
        if values is not None and values.shape != (length,):
            raise ValueError(f"{self._source}: the bias of {node.name!r} is {values.shape}, not {(length,)}")
        return values


def _float_kinds() -> Mapping[int, np.dtype[Any]]:
    """Types of TensorProto that weights may have."""
    from onnx import TensorProto

    kinds = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64}
    return {number: np.dtype(kind) for number, kind in kinds.items()}


def _integers(node: Any, name: str) -> tuple[int, ...]:
    return next((tuple(attribute.ints) for attribute in node.attribute if attribute.name == name), ())


_NODES: Mapping[str, Callable[[_Reader, Any], None]] = {
    "Constant": _Reader.constant,
    "Identity": _Reader.same,
    "Cast": _Reader.same,
    "Transpose": _Reader.transpose,
    "Conv": _Reader.conv,
    "MatMul": _Reader.product,
    "Gemm": _Reader.affine,
    "BatchNormalization": _Reader.batch_norm,
    "LayerNormalization": _Reader.layer_norm,
    "Mul": _Reader.scale,
    "Add": _Reader.sum,
}


class Layers:
    """Layers that are taken off one after the other, each with what it must be.

    Args:
        layers: of `read_layers`.
        source: what to call the file in errors.
    """

    def __init__(self, layers: Sequence[Layer], source: str) -> None:
        self.source = source
        self._layers, self._place = list(layers), 0

    def next_is(self, kind: str, after: int = 0) -> bool:
        """Whether the next layer, or the one so many after it, is of this kind."""
        found = self._layers[self._place + after :][:1]
        return bool(found) and found[0].kind == kind

    def peek(self, after: int = 0) -> Layer | None:
        """The next layer, or the one so many after it; None behind the last."""
        return next(iter(self._layers[self._place + after :][:1]), None)

    def take(self, kind: str, what: str, *, stride: int = 1, dilation: int = 1) -> Layer:
        """The next layer.

        Args:
            kind: what it must be.
            what: the weight's name here, for errors.
            stride, dilation: of a convolution, on its first axis (stride) or on all (dilation).

        Raises:
            ValueError: it is something else, or there is none.
        """
        layer = self.peek()
        if layer is None or layer.kind != kind:
            found = "the graph ends" if layer is None else f"there is {layer}"
            raise ValueError(f"{self.source} is not built as expected: {found} where {kind} of {what} should be")
        if kind == "conv":
            expected = (stride, *[1] * (len(layer.stride) - 1)), (dilation,) * len(layer.dilation)
            if (layer.stride, layer.dilation) != expected:
                raise ValueError(
                    f"{self.source} is not built as expected: {what} has stride {layer.stride} and dilation "
                    f"{layer.dilation}, not {expected[0]} and {expected[1]}"
                )
        self._place += 1
        return layer

    def finish(self) -> None:
        """ValueError: layers are left."""
        if left := self._layers[self._place :]:
            shown = ", ".join(str(layer) for layer in left[:_LIST_SHOWN])
            raise ValueError(f"{self.source} holds {len(left)} layers more than expected: {shown}")
