"""Calls of a recording: an operation with the tensors that it writes into, and with those that are others each time."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


class Moving:
    """The place of a tensor among the moving ones, or of the number of columns, in an argument."""

    def __init__(self, place: int | None) -> None:
        self.place = place


def filler(marked: Any) -> Callable[[list[Any], int], Any]:
    """Return a function that puts what moves in its places among arguments, a list or a dictionary."""

    def filled(x: Any, values: list[Any], columns: int) -> Any:
        if type(x) is list:
            return [filled(part, values, columns) for part in x]
        if type(x) is not Moving:
            return x
        return columns if x.place is None else values[x.place]

    pairs = marked.items() if type(marked) is dict else enumerate(marked)
    # few arguments move: the others are not looked at again
    moving = [
        (place, x) for place, x in pairs if any(type(part) is Moving for part in tree_leaves(x))
    ]

    def fill(values: list[Any], columns: int) -> Any:
        now = marked.copy()
        for place, x in moving:
            now[place] = filled(x, values, columns)
        return now

    return fill


def storage(x: Tensor) -> int:
    """Return the address of a tensor's memory, which its views share."""
    return x.untyped_storage().data_ptr()


def fixed(run: Callable[[], Any]) -> Callable[[list[Any], int], None]:
    """Return a call to which nothing that moves matters."""
    return lambda values, columns: run()


def needed_results(results: list[Tensor], read: set[int]) -> Callable[[], list[tuple[int, Tensor]]]:
    """Return a function that finds the results that other operations read, and their places."""

    @functools.cache
    def needed() -> list[tuple[int, Tensor]]:
        # known when all is recorded; attention also returns what a backward pass would read
        return [(place, x) for place, x in enumerate(results) if storage(x) in read]

    return needed


def writing(
    func: Any, args: Any, kwargs: Any, results: list[Tensor], read: set[int]
) -> Callable[[], Any]:
    """Return an operation that writes into its earlier results, as the call that takes the least time."""
    variant, names = _out_variant(func)
    if variant is not None:
        outs = dict(zip(names, results, strict=True))
        own = _python_function(func, args, kwargs, outs)
        return functools.partial(own or variant._op, *args, **kwargs, **outs)
    needed = needed_results(results, read)
    compute = _python_function(func, args, kwargs, {}) or func._op

    def run() -> None:
        found = compute(*args, **kwargs)
        parts = found if isinstance(found, tuple | list) else [found]
        for place, held in needed():
            held.copy_(parts[place])

    return run


def _python_function(func: Any, args: Any, kwargs: Any, outs: dict[str, Tensor]) -> Any:
    """Return torch's Python function of an operation, None if it does not take these arguments.

    It reads its arguments in a third of the time of the operator, which accepts any schema.
    """
    name = func.overloadpacket.__name__
    function: Any = getattr(torch, name, None) or getattr(torch._C._nn, name, None)
    try:
        function(*args, **kwargs, **outs)
    except (TypeError, RuntimeError):
        return None
    return function


@functools.cache
def _out_variant(func: Any) -> tuple[Any, list[str]]:
    """The overload of an operation that writes into given tensors, and the names of those."""
    packet = func.overloadpacket
    wanted = [(a.name, str(a.type)) for a in func._schema.arguments]
    for name in packet.overloads():
        variant = getattr(packet, name)
        arguments = variant._schema.arguments
        outs = [a.name for a in arguments if a.is_out]
        others = [(a.name, str(a.type)) for a in arguments if not a.is_out]
        # a generated one computes the results elsewhere and copies all of them
        if torch.Tag.generated in variant.tags:
            continue
        if outs and len(outs) == len(func._schema.returns) and others == wanted:
            return variant, outs
    return None, []
