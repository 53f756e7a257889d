"""Devices, precision and process groups: the setup of torch, Accelerate and DeepSpeed."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    # read when Accelerate imports DeepSpeed, which otherwise warns on the console about a missing
    # GPU
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from accelerate import Accelerator, DeepSpeedPlugin, PartialState
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from takd.models.precision import BFLOAT16, resolve
from takd.runtime.cuda_arch import check_kernels
from takd.runtime.errors import InputError
from takd.runtime.launch import launched, world_size

# Timeout of collective operations. NCCL's ten minutes are too short while the first process writes
# a large model to a busy disk; torchrun detects processes that die much sooner.
PATIENCE = timedelta(hours=1)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def settle(threads: int, deterministic: bool) -> None:
    """Set the number of threads and, if asked for, use deterministic algorithms only.

    Operations without a deterministic variant then raise RuntimeError, which `takd.runtime.stage` reports
    as one sentence. Call it before CUDA is used.
    """
    torch.set_num_threads(threads)
    if not deterministic:
        return
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # cuBLAS is deterministic with a fixed workspace only
    os.environ.setdefault(
        "NCCL_ALGO", "Ring"
    )  # in-network sums (NVLS) have no fixed order of summation
    torch.use_deterministic_algorithms(True)
    # filling each new tensor takes time, and no result depends on uninitialised memory
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def own() -> torch.device:
    """Return this process's GPU, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def choose_precision(setting: str, pretrained: str = "") -> str:
    """Resolve `auto` for the current device, as `takd.models.precision.resolve`.

    Args:
        setting: "auto", "fp32", "fp16" or "bf16".
        pretrained: dtype that the model was pretrained in.

    Raises:
        InputError: float16 on a CPU, or a GPU for which this torch build has no kernels.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        check_kernels(
            torch.cuda.get_device_capability(),
            torch.cuda.get_arch_list(),
            torch.cuda.get_device_name(),
            torch.__version__,
        )
    if setting == "fp16" and not on_gpu:
        raise InputError("precision 'fp16' needs a GPU; on a CPU use 'auto', 'fp32' or 'bf16'.")
    return resolve(setting, torch.cuda.get_device_capability() if on_gpu else None, pretrained)


def describe(precision: str, pretrained: str = "") -> str:
    """Describe a precision and its device for the log, and why it is not another one."""
    if not torch.cuda.is_available():
        return f"{precision} on the CPU"
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    lacking = "" if capability >= BFLOAT16 else ", which has no bfloat16"
    if precision == "fp16":
        return f"fp16 with dynamic loss scaling on {name}{lacking}"
    if precision == "fp32" and lacking and pretrained == "bfloat16":
        lacking += ": a model pretrained in it may leave the range of fp16"
    else:
        lacking = ""
    return f"{precision} on {name}{lacking}"


def start(
    precision: str,
    accumulation: int,
    micro_batch: int,
    gradient_clip: float,
    deepspeed: dict[str, Any] | None,
) -> Accelerator:
    """Join the process group and create the Accelerator.

    Args:
        precision: "fp32", "fp16" or "bf16".
        accumulation: micro-batches per optimizer step on each process.
        micro_batch: rows of a micro-batch.
        gradient_clip: largest gradient norm.
        deepspeed: `{"name", "config"}` of a file in config/deepspeed; None for one process or DDP.

    Raises:
        RuntimeError: Accelerate set up another number of processes or another backend.
    """
    world = world_size()
    on_gpu = torch.cuda.is_available()
    mixed = "no" if precision == "fp32" else precision
    if deepspeed is None:
        accelerator = Accelerator(
            cpu=not on_gpu,
            mixed_precision=mixed,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
            gradient_accumulation_steps=accumulation,
        )
    else:
        backend = "nccl" if on_gpu else "gloo"
        if not launched():
            _group_of_one(backend)
        # Accelerator(cpu=True, deepspeed_plugin=...) would silently run DDP, and without a process
        # group each CPU process would run as if it were the only one
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        PartialState(backend=backend, timeout=PATIENCE)
        config = {
            **deepspeed["config"],
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": gradient_clip,
            "zero_allow_untested_optimizer": True,
        }
        accelerator = Accelerator(
            mixed_precision=mixed,
            gradient_accumulation_steps=accumulation,
            deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=config),
        )
    kind = accelerator.distributed_type
    if accelerator.num_processes != world or (kind == DistributedType.DEEPSPEED) != bool(deepspeed):
        raise RuntimeError(
            f"asked for {world} processes, DeepSpeed {bool(deepspeed)};"
            f" got {accelerator.num_processes}, {kind}"
        )
    return accelerator


def _group_of_one(backend: str) -> None:
    """Create the process group of one process that DeepSpeed requires, on a free port."""
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR=store.host, MASTER_PORT=str(store.port))
    dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=PATIENCE)


def uses_zero3(accelerator: Accelerator) -> bool:
    """Return whether parameters are sharded over processes (ZeRO stage 3)."""
    plugin = accelerator.state.deepspeed_plugin
    return plugin is not None and plugin.zero_stage == 3


def seed_generators(seed: int) -> None:
    """Seed the generators of dropout: 50 times faster than `torch.manual_seed`, for tiny models."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
