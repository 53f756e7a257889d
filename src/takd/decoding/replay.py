"""Running a function of tensors at fixed addresses again, without the Python code that it is made of.

On a CPU, a step of a small model waits for Python: modules, hooks, decorators and views around about
14 operations a block. A recording keeps the operations alone, with the tensors that they read and
write, as a CUDA graph keeps a GPU's kernels. Attention sees one column more in each step, so
operations on keys, values and masks take the current ones instead of those of the recording.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from takd.decoding.recorded_calls import Moving, filler, fixed, needed_results, storage, writing

RECORDED_BYTES = 256 * 2**20  # most bytes of the intermediate results of one recording
PLAIN_RUNS = 3  # before a recording, which takes as long as two of them
ATTEMPTS = 3
LARGEST_DIMENSION = 5  # number of a tensor's dimension that an operation may name
# operations whose results a recording cannot know: numbers for Python, sizes that depend on data, random numbers
UNKNOWN = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
}


class Replayed:
    """A function that is recorded after some calls, and then replayed.

    The function must read and write tensors at fixed addresses, but for the moving ones. The first
    replay is compared with the function itself: where a bit differs, the function stays as it is.
    """

    def __init__(self) -> None:
        self._runs: dict[Hashable, int] = {}
        self._attempts: dict[Hashable, int] = {}
        self._recordings: dict[Hashable, Recording] = {}
        self._checked: set[Hashable] = set()
        self._ambiguous: set[tuple[Hashable, int]] = set()

    def forget(self) -> None:
        """Drop all recordings, because addresses have changed."""
        self.__init__()  # type: ignore[misc]

    def bytes(self) -> int:
        """Return the bytes of the intermediate results of all recordings."""
        return sum(recording.bytes for recording in self._recordings.values())

    def __call__(
        self, key: Hashable, function: Callable[[], Tensor], moving: Sequence[Tensor], columns: int
    ) -> Tensor:
        """Return what the function returns.

        Args:
            key: what determines the shapes of all tensors but the moving ones.
            moving: tensors that the function reads, which are others in each call.
            columns: the size of those of their dimensions that changes.
        """
        recording = self._recordings.get(key)
        if recording is not None and key in self._checked:
            return recording.replay(moving, columns)
        if recording is not None:
            try:
                found = recording.replay(moving, columns).clone()
            except RuntimeError:
                found = torch.zeros(0)
            expected = function()
            if torch.equal(found, expected):
                # with as many columns as in the recording, nothing that moves has been tried
                if columns != recording.columns:
                    self._checked.add(key)
            else:
                del self._recordings[key]
            return expected
        self._runs[key] = self._runs.get(key, 0) + 1
        attempts = self._attempts.get(key, 0)
        ambiguous = (key, columns) in self._ambiguous
        if self._runs[key] <= PLAIN_RUNS or attempts == ATTEMPTS or ambiguous:
            return function()
        with _Recorder(moving, columns) as recorder:
            result = function()
        if recorder.ambiguous:
            self._ambiguous.add((key, columns))
            return result
        self._attempts[key] = attempts + 1
        if (
            recorder.known
            and recorder.bytes <= RECORDED_BYTES
            and id(result) not in recorder.moving
        ):
            self._recordings[key] = Recording(recorder, result)
        return result


class Recording:
    """Operations with their tensors, in order, and the tensor of the result."""

    def __init__(self, recorder: "_Recorder", result: Tensor) -> None:
        # the tensors are kept, since others could otherwise get their addresses
        self._calls, self._kept, self._result = recorder.calls, recorder.kept, result
        recorder.read.add(storage(result))
        self.bytes, self.columns = recorder.bytes, recorder.columns

    def replay(self, moving: Sequence[Tensor], columns: int) -> Tensor:
        """Run the operations again; the result is the same tensor each time."""
        values = list(moving)
        for call in self._calls:
            call(values, columns)
        return self._result


class _Recorder(TorchDispatchMode):
    """Notes all operations while they run.

    Attributes:
        known: whether they can be replayed.
        ambiguous: whether something else is as large as the number of columns, and not told from it.
        bytes: of all results.
        read: the storages that they read.
    """

    def __init__(self, moving: Sequence[Tensor], columns: int) -> None:
        super().__init__()
        self.moving = {id(tensor): place for place, tensor in enumerate(moving)}
        self.columns, self.known, self.bytes = columns, True, 0
        self.ambiguous = columns <= LARGEST_DIMENSION
        self.read: set[int] = set()
        self.calls: list[Callable[[list[Any], int], None]] = []
        self.kept: list[Any] = list(moving)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        leaves, results = tree_leaves((args, kwargs)), tree_leaves(found)
        self.kept += [*leaves, *results]
        if unknown(func, args, kwargs) or not all(isinstance(x, Tensor) for x in results):
            self.known = False
            return found
        read = [x for x in leaves if isinstance(x, Tensor)]
        self.ambiguous |= any(x.shape.count(self.columns) > (id(x) in self.moving) for x in read)
        places = set(map(storage, read))
        self.read |= places
        shared = any(storage(x) in places for x in results)
        changes = func._schema.is_mutable
        grown = not read and any(type(x) is int and x == self.columns for x in leaves)
        if grown or any(id(x) in self.moving for x in read):
            self._note_moving(func, args, kwargs, results, shared, changes)
        elif changes:
            self.calls.append(fixed(functools.partial(func._op, *args, **kwargs)))
        elif not shared:  # a view needs nothing: it stays one of the same tensor
            self.bytes += sum(x.nbytes for x in results)
            self.calls.append(fixed(writing(func, args, kwargs, results, self.read)))
        return found

    def _note_moving(
        self, func: Any, args: Any, kwargs: Any, results: list[Any], shared: bool, changes: bool
    ) -> None:
        """Note an operation whose arguments differ in each replay."""

        def marked(x: Any) -> Any:
            if type(x) is int and x == self.columns:
                return Moving(None)
            return Moving(self.moving[id(x)]) if id(x) in self.moving else x

        marked_args, marked_kwargs = tree_map(marked, (list(args), kwargs))
        grows = shared or any(self.columns in x.shape for x in results)
        if grows and not changes:
            for x in results:
                self.moving[id(x)] = len(self.moving)
        fill_args, fill_kwargs = filler(marked_args), filler(marked_kwargs)
        run, needed = func._op, needed_results(results, self.read)

        def call(values: list[Any], columns: int) -> None:
            found = run(*fill_args(values, columns), **fill_kwargs(values, columns))
            if changes:
                return
            parts = found if isinstance(found, tuple | list) else [found]
            if grows:
                values.extend(parts)
                return
            for place, held in needed():
                held.copy_(parts[place])

        self.calls.append(call)


def unknown(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether the results of an operation depend on more than a recording knows."""
    tags = UNKNOWN & set(func.tags)
    if tags == {torch.Tag.dynamic_output_shape} and func.overloadpacket is torch.ops.aten.index:
        # the size of what is looked up depends on data only for indices that are truth values
        return any(x.dtype == torch.bool for x in args[1] if x is not None)
    names = [argument.name for argument in func._schema.arguments]
    if tags == {torch.Tag.nondeterministic_seeded} and "dropout_p" in names:
        # attention, which draws numbers for dropout alone
        given = dict(zip(names, args, strict=False)) | kwargs
        return given.get("dropout_p", 0.0) != 0.0
    return bool(tags)
