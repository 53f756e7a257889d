"""Facts about the GPU, and its highest rates."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from statistics import median

import torch
from harness import timed

from gpu_checks.running import Findings

PACKAGES = ("torch", "triton", "transformers", "accelerate", "deepspeed", "peft", "tokenizers")
GIB = 2**30


def facts(findings: Findings) -> None:
    """Record versions, and the rates of large products by type, of the memory, and of copies between host and GPU."""
    for name in PACKAGES:
        try:
            findings.add(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            findings.add(name, None)
    findings.add("python", platform.python_version())
    findings.add("cores", len(os.sched_getaffinity(0)))
    if findings.gpu:
        with findings.part("card"):
            findings.add("card", torch.cuda.get_device_name())
            findings.add("capability", list(torch.cuda.get_device_capability()))
            findings.add("kernels for", torch.cuda.get_arch_list())
            findings.add("bytes", torch.cuda.mem_get_info()[1])
            findings.add("CUDA", torch.version.cuda)
            findings.add("driver", _driver())
    size = 8192 if findings.gpu else 256
    kinds = {"fp32": torch.float32, "tf32": torch.float32}
    kinds |= {"fp16": torch.float16, "bf16": torch.bfloat16}
    for name, dtype in kinds.items():
        if not findings.gpu and name in ("tf32", "fp16"):
            continue
        with findings.part(name):
            rate = 2 * size**3 / _seconds(product(size, dtype, findings.device, name == "tf32"))
            findings.add(f"products in {name}, TFLOP/s", rate / 1e12)
    with findings.part("memory"):
        findings.add("memory, GB/s read and written", memory_rate(findings.device) / 1e9)
    if findings.gpu:
        for kind, pinned in (("pinned", True), ("pageable", False)):
            with findings.part(f"copies of {kind} memory"):
                host = torch.empty(GIB // 4, dtype=torch.uint8, pin_memory=pinned)
                card = torch.empty_like(host, device=findings.device)
                up = _seconds(lambda card=card, host=host: card.copy_(host))
                down = _seconds(lambda card=card, host=host: host.copy_(card))
                findings.add(f"host to card, {kind}, GB/s", host.nbytes / up / 1e9)
                findings.add(f"card to host, {kind}, GB/s", host.nbytes / down / 1e9)


def memory_rate(device: torch.device) -> float:
    """Return the bytes a second that a large copy reads and writes."""
    many = GIB if device.type == "cuda" else GIB // 16
    one = torch.ones(many, dtype=torch.uint8, device=device)
    other = torch.empty_like(one)
    return 2 * many / _seconds(lambda: other.copy_(one))


def product(
    size: int, dtype: torch.dtype, device: torch.device, tf32: bool = False
) -> Callable[[], None]:
    """Make a product of square matrices that writes into allocated memory."""
    left, right, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))

    def multiply() -> None:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.mm(left, right, out=out)
        torch.backends.cuda.matmul.allow_tf32 = before

    return multiply


def _seconds(function: Callable[[], object]) -> float:
    def run() -> None:
        function()

    timed(run)
    return median(timed(run) for _ in range(5))


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.split("\n")[0]
