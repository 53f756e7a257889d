"""CUDA graphs: kernels of a function of tensors at fixed addresses, launched together.

A step of decoding launches thousands of kernels that take a few microseconds each, so a GPU would
wait for Python. A graph launches them all at once. It holds addresses: tensors that the function
reads and writes must stay where they are, and what it allocates stays reserved for the graph.
"""

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from takd.decoding.replay import unknown

Function = Callable[[], None]


class Graphs:
    """Runs functions as CUDA graphs; on other devices, or where capturing fails, as they are.

    The first run of each key runs the function itself, on the stream that the second captures, so
    that libraries are initialised there, and watches for what cannot be captured: a capture that
    fails may leave random numbers in disorder.

    Attributes:
        capture: runs a function, and returns a function that does the same again; None if functions
            are not captured.
    """

    def __init__(self, device: torch.device) -> None:
        self.capture: Callable[[Function], Function] | None = None
        if device.type == "cuda" and torch.version.cuda is not None:
            self.capture = self._captured
            self._stream = torch.cuda.Stream(device)
            # graphs run one after the other, and leave nothing in memory of their own: they can
            # share it
            self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[Hashable, Function | None] = {}

    def forget(self) -> None:
        """Drop all graphs, because addresses have changed."""
        self._graphs.clear()

    def __call__(self, key: Hashable, function: Function) -> None:
        """Run a function, or the graph that was captured of it under a key.

        Args:
            key: what determines all shapes, and whatever else Python decides in the function.
        """
        if self.capture is None:
            function()
        elif (graph := self._graphs.get(key)) is not None:
            graph()
        elif key not in self._graphs:
            self._graphs[key] = None
            with _Watch() as watch:
                self._beside(function)
            if watch.waits:
                self._give_up(f"{watch.waits} waits for the GPU, or depends on its numbers")
        else:
            try:
                self._graphs[key] = self.capture(function)
            except RuntimeError as error:  # memory, too
                self._give_up(str(error).strip().splitlines()[0])
                function()

    def _give_up(self, reason: str) -> None:
        self.capture = None
        self.forget()
        warnings.warn(
            "Decoding goes on without CUDA graphs, and so more slowly: this model's steps cannot be"
            f" captured ({reason}).",
            stacklevel=3,
        )

    def _beside(self, function: Function) -> None:
        if self.capture != self._captured:
            function()
            return
        now = torch.cuda.current_stream()
        self._stream.wait_stream(now)
        with torch.cuda.stream(self._stream):
            function()
        now.wait_stream(self._stream)

    def _captured(self, function: Function) -> Function:
        graph = torch.cuda.CUDAGraph()
        # autocast's copies of weights belong to a pass, not to the graph
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        try:
            # other threads, such as NCCL's, go on using the GPU meanwhile
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                function()
        finally:
            torch.set_autocast_cache_enabled(cached)
        graph.replay()
        return graph.replay


class _Watch(TorchDispatchMode):
    """Notes the first operation, if any, whose results depend on more than addresses, or leave a device.

    Attributes:
        waits: its name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits = ""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let what is compiled already run as such: its kernels depend on addresses alone."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if not self.waits:
            tensors = [x for x in tree_leaves((args, kwargs, found)) if isinstance(x, Tensor)]
            devices = {x.device for x in tensors if x.dim()}
            if len(devices) > 1 or unknown(func, args, kwargs):
                self.waits = str(func)
        return found
