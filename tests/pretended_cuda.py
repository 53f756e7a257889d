"""A simulated CUDA device: tensors report the device `cuda:0` but compute on the CPU.

    with PretendedCard() as card:
        model.to("cuda")
        card.reset()
        draw(model, ...)
    assert card.syncs.total() <= 3

Inside the block `torch.cuda` reports one GPU, and code takes the branches for a GPU: other chunk sizes, autocast by
CUDA's lists, fused optimizers. Operations that a GPU would reject raise errors, and its work is counted.

Detected:
- tensors of both devices in one operation (RuntimeError, as on a GPU; a CPU tensor without dimensions is allowed there
  and here);
- kernels: operations of PyTorch that compute on the GPU, without views and allocations. An operation counts as one,
  attention without gradients too, though a real one may launch several: numbers are for comparison, not for timing;
- transfers from and to the host, with their bytes;
- syncs: points at which Python waits for the GPU (`item`, `tolist`, copies to the host, boolean indices);
- bytes that kernels read and write: of a table, the rows that are looked up; of an expanded tensor, what it expands;
- operations on CPU tensors in the same block.

Not detected: speed, memory, streams, Triton and other kernels that are not PyTorch operations, and numerical
differences of real kernels. Those need `benchmarks/gpu_check.py` on a GPU.

For PyTorch's own C++ code the tensors are on the CPU, since a build without CUDA can neither index nor differentiate
others. `_Functions` handles queries of the device in Python, and `_Operations` handles all computation.
"""

import contextlib
import math
import numbers
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
NAME = "Pretended A100"
CAPABILITY = (8, 0)
MEMORY = 2**36  # bytes
ATTENTION = torch.nn.functional.scaled_dot_product_attention

# operations that compute nothing, besides PyTorch's views
FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "new_empty_like"),
    *("_unsafe_view", "unsafe_split", "set_", "resize_", "is_pinned", "is_same_size"),
    "_local_scalar_dense",
}
# operations whose result is a number on the host, or has a size that depends on GPU data
SYNCING = {
    *("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "bincount"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"),
}
INDEXED = {"index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"}

# operations that read or write a part of their first tensor
WRITTEN = {"index_put", "index_put_", "_index_put_impl_", "scatter", "scatter_", "index_copy_"}
LOOKED_UP = {"index", "_unsafe_index", "index_select", "gather", "embedding"} | WRITTEN

# memory addresses of tensors, by which tied weights are recognised when saving
PLACES = {torch.Tensor.storage, torch.Tensor.untyped_storage, torch.Tensor.data_ptr}

# CUDA autocast's operations in half precision, and in float32 (PyTorch, "Automatic Mixed Precision package")
HALF = {
    *("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "chain_matmul"),
    *("addmm", "addmv", "addr", "addbmm", "baddbmm", "conv1d", "conv2d", "conv3d", "prelu"),
    *("multi_dot", "einsum", "scaled_dot_product_attention"),
}
FLOAT = {
    *("pow", "__pow__", "__rpow__", "__rdiv__", "__rtruediv__", "reciprocal", "rsqrt", "exp"),
    *("expm1", "log", "log10", "log1p", "log2", "cumsum", "cumprod", "sum", "prod", "norm"),
    *("layer_norm", "group_norm", "softmax", "log_softmax", "softmin", "softplus", "normalize"),
    *("cross_entropy", "nll_loss", "kl_div", "l1_loss", "mse_loss", "smooth_l1_loss", "dist"),
    *("cosine_similarity", "cdist", "renorm", "acos", "asin", "cosh", "sinh", "tan", "erfinv"),
}

_cards: list["PretendedCard"] = []


class CardTensor(Tensor):
    """A tensor that reports the simulated GPU as its device; `inner` holds its values on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> "CardTensor":
        found = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
        )
        found.inner = inner
        return found

    def __init__(self, inner: Tensor) -> None:
        pass

    def __repr__(self, **_: Any) -> str:
        return f"CardTensor({self.inner!r})"

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    # with these two, `Module.to` swaps parameters instead of copying, which keeps tied ones tied
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> "CardTensor":
        return CardTensor(inner["inner"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _cards:
            raise RuntimeError(f"{func} of a tensor of a pretended card that is gone")
        return _cards[-1].compute(func, args, kwargs or {})


class PretendedCard:
    """A simulated GPU within a `with` block, with counts of its operations.

    Attributes:
        kernels: operations on the card, by name.
        bytes: that they read and write, by name.
        syncs: waits of the host for the card, by cause.
        host: operations on CPU tensors, by name.
        transfers: "uploads" and "downloads", and their "bytes up" and "bytes down".
    """

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self.reset()

    def reset(self) -> None:
        """Reset all counts to zero."""
        self.kernels: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()
        self.host: Counter[str] = Counter()
        self.transfers: Counter[str] = Counter()

    def __enter__(self) -> "PretendedCard":
        import torch._dynamo  # it inspects the functions of torch.cuda, which must not be patched yet

        enter = self._open.enter_context
        for name, found in _CUDA.items():
            enter(mock.patch.object(torch.cuda, name, found))
        functions = _Functions(self)
        enter(mock.patch.object(torch, "clear_autocast_cache", functions.casts.clear))
        enter(_Operations(self))
        enter(functions)
        _cards.append(self)
        self._open.callback(_cards.pop)
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Handle an operation as a GPU would: reject it, or count and compute it."""
        name = func._schema.name.split("::")[1]
        tensors = list(_tensors((args, kwargs)))
        outer = {id(x.inner): x for x in tensors if isinstance(x, CardTensor)}
        wanted = kwargs.pop("device", None)
        if name == "_to_copy" and wanted in (CUDA, _HOST):
            return self._moved(func, args[0], kwargs, to_card=wanted == CUDA)
        if name == "copy_" and isinstance(args[0], CardTensor) != isinstance(args[1], CardTensor):
            func(_inner(args[0]), _inner(args[1]), *args[2:], **kwargs)
            self._transferred(args[1], to_card=isinstance(args[0], CardTensor))
            return args[0]
        if outer:
            self._check(func, name, args, tensors)
        # PyTorch itself gives the CPU as the device of results computed from the simulated GPU's tensors
        on_card = bool(outer) or (wanted is not None and torch.device(wanted).type == "cuda")
        if not (name in FREE or func.is_view):
            (self.kernels if on_card else self.host)[name] += 1
        if wanted is not None:
            kwargs["device"] = CPU
        found = _computed(func, name, _mapped(_inner, args), _mapped(_inner, kwargs))
        if on_card and not (name in FREE or func.is_view):
            self.bytes[name] += _moved_bytes(name, args, tensors, found)

        def wrapped(x: Any) -> Any:
            # an in-place operation returns its input tensor
            if not isinstance(x, Tensor):
                return x
            return outer[id(x)] if id(x) in outer else CardTensor(x)

        return _mapped(wrapped, found) if on_card else found

    def _check(self, func: Any, name: str, args: Any, tensors: list[Tensor]) -> None:
        """Reject tensors of both devices; count syncs and the transfers of indices."""
        if name in SYNCING:
            self.syncs[name.strip("_")] += 1
        strays = [x for x in tensors if x.dim() and not isinstance(x, CardTensor)]
        if name in INDEXED:
            indices = [x for x in args[1] if x is not None]
            self.syncs.update(
                "boolean index" for x in indices if x.dtype in (torch.bool, torch.uint8)
            )
            # indices on the host are copied to the GPU; CPU tensors reject indices on the GPU
            fetched = [x for x in indices if not isinstance(x, CardTensor)]
            for index in fetched:
                self._transferred(index, to_card=True)
            strays = [x for x in strays if not any(x is index for index in fetched)]
        if strays:
            raise RuntimeError(
                f"Expected all tensors to be on the same device: {func} on {CUDA} got tensors on the CPU of"
                f" {', '.join(str(tuple(x.shape)) for x in strays)}"
            )

    def _moved(self, func: Any, source: Tensor, kwargs: dict[str, Any], to_card: bool) -> Tensor:
        """Copy a tensor to the other device."""
        found = func(_inner(source), **kwargs)
        self._transferred(found, to_card)
        return CardTensor(found) if to_card else found

    def _transferred(self, tensor: Tensor, to_card: bool) -> None:
        count, size = ("uploads", "bytes up") if to_card else ("downloads", "bytes down")
        if not tensor.numel():
            return
        self.transfers[count] += 1
        self.transfers[size] += tensor.nbytes
        if not to_card:
            self.syncs["download"] += 1


# marks a copy to the host: PyTorch's own C++ code never uses this device here
_HOST = torch.device("meta")


def _mapped(function: Callable[[Any], Any], x: Any) -> Any:
    """Apply a function to all leaves of a container, in a third of the time of PyTorch's `tree_map`."""
    if type(x) in (tuple, list):
        return type(x)(_mapped(function, part) for part in x)
    if type(x) is dict:
        return {key: _mapped(function, part) for key, part in x.items()}
    return function(x)


def _tensors(x: Any) -> Iterator[Tensor]:
    if isinstance(x, Tensor):
        yield x
    elif type(x) in (tuple, list, dict):
        for part in x.values() if type(x) is dict else x:
            yield from _tensors(part)


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, CardTensor) else x


def _moved_bytes(name: str, args: Any, tensors: list[Tensor], found: Any) -> int:
    """Bytes that an operation reads and writes."""
    results = list(_tensors(found))
    if name in LOOKED_UP:  # as much of the first tensor as is found in it, or written to it
        others = [x for x in tensors if x is not args[0]]
        moved = others[-1:] if name in WRITTEN else results
        return sum(map(_own_bytes, [*others, *moved]))
    return sum(map(_own_bytes, [*tensors, *results]))


def _own_bytes(x: Tensor) -> int:
    """Bytes of a tensor's own numbers: an expanded dimension repeats them."""
    sizes = (n for n, stride in zip(x.shape, x.stride(), strict=True) if stride or n == 0)
    return math.prod(sizes) * x.element_size()


def _computed(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """Compute the operation on the CPU, emulating CUDA's matrix products with a wider result type."""
    if not func._overloadname.startswith("dtype") or name not in HALF:
        return func(*args, **kwargs)
    *factors, dtype = args
    if dtype != torch.float32 or any(x.dtype == torch.float32 for x in factors):
        raise RuntimeError(f"{name} of {factors[0].dtype} has no result of {dtype} on a card")
    product = getattr(torch.ops.aten, name)
    overload = product.out if "out" in kwargs else product.default
    return overload(*(factor.float() for factor in factors), **kwargs)


class _Operations(TorchDispatchMode):
    """Pass every operation to the simulated GPU, those on CPU tensors too."""

    def __init__(self, card: PretendedCard) -> None:
        super().__init__()
        self.card = card

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.card.compute(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Decisions made before an operation: device, precision, and one kernel or several.

    Attributes:
        casts: half-precision copies of weights, which autocast makes once per pass.
    """

    def __init__(self, card: PretendedCard) -> None:
        super().__init__()
        self.card = card
        self.casts: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if torch.is_autocast_enabled("cuda") and "out_dtype" not in kwargs and "out" not in kwargs:
            args, kwargs = self._cast(name, args, kwargs)
        if func in (torch.Tensor.to, torch.Tensor.cpu, torch.Tensor.cuda):
            return _to(name, *args, **kwargs)
        if func in (torch.tensor, torch.as_tensor) and _on_cuda(kwargs.get("device")):
            return _to("cuda", func(*args, **{**kwargs, "device": None}))
        if func is torch.empty:
            kwargs.pop("pin_memory", None)  # a build without CUDA cannot
        if not isinstance(first, CardTensor):
            return first if func is torch.Tensor.pin_memory else func(*args, **kwargs)
        if func is torch.Tensor.new_tensor:
            return _to("cuda", torch.tensor(args[1], dtype=kwargs.get("dtype", first.dtype)))
        if func is torch.Tensor.tolist:
            return _to("cpu", first).tolist()
        if func in PLACES:
            return func(first.inner)
        if func is torch.Tensor.pin_memory:
            raise RuntimeError("cannot pin a tensor of the card")
        if func is torch.Tensor.numpy:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if func is torch.Tensor.__setitem__ and isinstance(args[2], numbers.Number):
            args = (first, args[1], torch.full((), args[2], dtype=first.dtype, device=CUDA))
        if func is ATTENTION and not torch.is_grad_enabled():
            return self._attention(*args, **kwargs)
        if kwargs.get("device") is not None and not _on_cuda(kwargs["device"]):
            return func(first.inner, *args[1:], **kwargs)
        return func(*args, **kwargs)

    def _cast(self, name: str, args: Any, kwargs: Any) -> Any:
        """Apply autocast to the tensors of an operation."""
        half = torch.get_autocast_dtype("cuda")

        def to_half(x: Any) -> Any:
            if not _is_number_of_card(x) or x.dtype == half:
                return x
            if not (x.is_leaf and x.requires_grad and x.dtype == torch.float32):
                return x.to(half)
            if id(x) not in self.casts:
                self.casts[id(x)] = x, x.to(half)
            return self.casts[id(x)][1]

        def to_float(x: Any) -> Any:
            narrow = _is_number_of_card(x) and x.dtype in (torch.float16, torch.bfloat16)
            return x.to(torch.float32) if narrow else x

        cast = to_half if name in HALF else to_float if name in FLOAT else None
        return (_mapped(cast, args), _mapped(cast, kwargs)) if cast else (args, kwargs)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Compute attention as one kernel; PyTorch would decompose it on a CPU."""
        given, mask = (query, key, value), kwargs.get("attn_mask", args[0] if args else None)
        if any(not isinstance(x, CardTensor) for x in (*given, *([] if mask is None else [mask]))):
            raise RuntimeError("attention of tensors of which some are on the CPU")
        if len({x.dtype for x in given}) > 1:
            raise RuntimeError(f"attention of different types: {[x.dtype for x in given]}")
        if mask is not None and mask.dtype not in (torch.bool, torch.float32, query.dtype):
            raise RuntimeError(f"attention of {query.dtype} with a mask of {mask.dtype}")
        self.card.kernels["attention"] += 1
        read = [*given, *([] if mask is None else [mask])]
        self.card.bytes["attention"] += sum(map(_own_bytes, read)) + _own_bytes(query)
        if mask is not None and mask.dtype == torch.bool:
            self.card.kernels["mask to numbers"] += 2  # zeros, and -inf where the mask is false
        with torch._C._DisableTorchDispatch():
            inner = [x.inner.float() for x in given]
            # the CPU wants the mask in the type that it computes in, as a GPU does
            args, kwargs = _mapped(_widened, args), _mapped(_widened, kwargs)
            found = ATTENTION(*inner, *args, **kwargs)
            return CardTensor(found.to(query.dtype))


def _widened(x: Any) -> Any:
    """The CPU's tensor of one on the card, in float32 if it has half precision."""
    x = _inner(x)
    return x.float() if isinstance(x, Tensor) and x.dtype != torch.bool else x


def _to(name: str, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to`, `Tensor.cpu` and `Tensor.cuda`, by name."""
    if name != "to":
        device, dtype = {"cpu": CPU, "cuda": CUDA}[name], None
    elif args and isinstance(args[0], Tensor):
        device, dtype = args[0].device, args[0].dtype
    else:
        named = {key: kwargs[key] for key in ("device", "dtype") if key in kwargs}
        device, dtype, *_ = torch._C._nn._parse_to(*args, **named)
    dtype = dtype or tensor.dtype
    if device is not None and device.type != tensor.device.type:
        target = CUDA if _on_cuda(device) else _HOST
        return torch.ops.aten._to_copy.default(tensor, dtype=dtype, device=target)
    if kwargs.get("copy") or dtype != tensor.dtype:
        return torch.ops.aten._to_copy.default(tensor, dtype=dtype)
    return tensor


def _on_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _is_number_of_card(x: Any) -> bool:
    return isinstance(x, CardTensor) and x.is_floating_point()


def _nothing(*_: Any, **__: Any) -> None:
    pass


# replacements for functions of torch.cuda
_CUDA: dict[str, Any] = {
    "_lazy_init": _nothing,
    "is_available": lambda: True,
    "is_bf16_supported": lambda *_: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "get_device_name": lambda *_: NAME,
    "get_device_capability": lambda *_: CAPABILITY,
    "get_arch_list": lambda: ["sm_80"],
    "get_device_properties": lambda *_: SimpleNamespace(name=NAME, total_memory=MEMORY),
    "manual_seed": _nothing,
    "manual_seed_all": _nothing,
    "set_device": _nothing,
    "synchronize": _nothing,
    "empty_cache": _nothing,
    "mem_get_info": lambda *_: (MEMORY, MEMORY),
    "memory_reserved": lambda *_: 0,
    "memory_allocated": lambda *_: 0,
    "max_memory_allocated": lambda *_: 0,
}
