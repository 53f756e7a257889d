"""Devices, precision and process groups: everything that Accelerate has to be told."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

if not torch.cuda.is_available():
    # read when accelerate imports DeepSpeed, which else warns on the console that it found no card
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

from accelerate import Accelerator, DeepSpeedPlugin, PartialState
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from takd.cards import check_kernels
from takd.errors import InputError
from takd.precision import BFLOAT16, resolve

# How long processes wait for one another. NCCL's ten minutes are too short while the first one writes a large model to
# a busy disk; a process that dies is noticed by torchrun, long before.
PATIENCE = timedelta(hours=1)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def own() -> torch.device:
    """This process's card, or else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def choose_precision(setting: str, pretrained: str = "") -> str:
    """Resolve `auto` for the device at hand, as `takd.precision.resolve`.

    Args:
        pretrained: type that the model was pretrained in.

    Raises:
        InputError: float16 on a CPU, or a card for which this torch has no kernels.
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
    """In what numbers a model computes, on what, and why not in others."""
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
    """Join the process group and say how to train.

    Args:
        accumulation: micro-batches of one optimizer step on each process.
        deepspeed: `{"name", "config"}` of a file in config/deepspeed, or None for plain or DDP training.

    Raises:
        RuntimeError: Accelerate set up something else than was asked for.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
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
        if "RANK" not in os.environ:
            _group_of_one(backend)
        # Accelerator(cpu=True, deepspeed_plugin=...) would silently run DDP, and without a process group
        # each of two CPU processes would believe that it is alone
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
    """The process group that DeepSpeed wants even of one process, on a port that no other training of the node has."""
    store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1")
    os.environ.update(MASTER_ADDR=store.host, MASTER_PORT=str(store.port))
    dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=PATIENCE)


def uses_zero3(accelerator: Accelerator) -> bool:
    """Whether each process holds only a part of each parameter."""
    plugin = accelerator.state.deepspeed_plugin
    return plugin is not None and plugin.zero_stage == 3


def seed_generators(seed: int) -> None:
    """Seed what dropout draws from: `torch.manual_seed` in a fiftieth of its time, which tiny models notice."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


def device_name(device: torch.device) -> str:
    """Name of the card, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
