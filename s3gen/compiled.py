"""Fewer and larger kernels: torch.compile for what lies between products, CUDA graphs for what launches them.

Both are an offer: where compilation fails, the functions run as they are, after one warning.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

# Recorded solvers that are kept, the least recently used given up: each holds its inputs and what lies between.
MOST_GRAPHS = 8


class Compiler:
    """Compiles functions, until one of them cannot be: then all of its functions run as they are."""

    def __init__(self) -> None:
        self.broken = False

    def __call__(self, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """The function as torch.compile makes it: once for the first sizes it meets, and once more for any."""
        compiled = torch.compile(function)

        def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
            if not self.broken:
                try:
                    return compiled(*arguments, **named)
                except RuntimeError as error:
                    if not isinstance(error, torch._dynamo.exc.TorchDynamoException):
                        raise
                    # A failed compilation, so that nothing has run, and nothing was overwritten.
                    self.broken = True
                    give_up("torch.compile", error)
            return function(*arguments, **named)

        return run


class Graphs:
    """Recordings of one function, by the sizes of its inputs.

    A recording replays all of its kernels in one launch, on the memory they were recorded with; inputs are copied
    there first.
    """

    def __init__(self) -> None:
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._pool: Any = None
        self._failed = False

    def run(self, key: Hashable, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """`function` of the inputs; the result is overwritten by the next run of the same key.

        Args:
            key: whatever else decides what the function does; inputs of equal keys have equal shapes and types.
            function: of tensors to a tensor; all its work is queued on the current CUDA stream.
            inputs: on CUDA.
        """
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._record(key, function, inputs)
            if graph is None:
                return function(*inputs)
        self._graphs.move_to_end(key)
        return graph.replay(inputs)

    def _record(self, key: Hashable, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> _Graph | None:
        if self._failed:
            return None
        try:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = self._graphs[key] = _Graph(function, inputs, self._pool)
        except torch.OutOfMemoryError:
            # Without the recordings there may be room; if not, the caller hears of it.
            self._graphs.clear()
            return None
        except Exception as error:
            self._graphs.clear()
            self._failed = True
            give_up("a CUDA graph", error)
            return None
        while len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)
        return graph


class _Graph:
    """One recording."""

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor], pool: Any) -> None:
        self._inputs = [value.clone() for value in inputs]
        # Compilation, libraries' workspaces and choices of algorithms must not be part of the recording.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads of the process may use CUDA meanwhile: only this one's calls are watched.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = function(*self._inputs)

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        for kept, value in zip(self._inputs, inputs, strict=True):
            kept.copy_(value)
        self._graph.replay()
        return self._output


def give_up(what: str, error: Exception) -> None:
    """Says once that something runs uncompiled from here on."""
    reason = " ".join(str(error).split())[:300]
    warnings.warn(f"{what} failed, and the model goes on without: {type(error).__name__}: {reason}", stacklevel=3)
