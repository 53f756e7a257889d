"""Process group and Accelerator of a training run, with or without DeepSpeed."""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin, PartialState
from accelerate.utils import DistributedType, InitProcessGroupKwargs

from takd.runtime.launch import launched, world_size

# Timeout of collective operations. NCCL's ten minutes are too short while the first process writes
# a large model to a busy disk; torchrun detects processes that die much sooner.
PATIENCE = timedelta(hours=1)


def start(
    precision: str,
    accumulation: int,
    micro_batch: int,
    gradient_clip: float,
    deepspeed: dict[str, Any] | None,
) -> Accelerator:
    """Join the process group and create the Accelerator.

    Args:
        accumulation: micro-batches per optimizer step on each process.
        deepspeed: `{"name", "config"}` of a file in config/deepspeed; None for one process or DDP.

    Raises:
        RuntimeError: Accelerate set up another number of processes or another backend.
    """
    world = world_size()
    on_gpu = torch.cuda.is_available()
    options: dict[str, Any] = {
        "mixed_precision": "no" if precision == "fp32" else precision,
        "gradient_accumulation_steps": accumulation,
    }
    if deepspeed is None:
        patient = InitProcessGroupKwargs(timeout=PATIENCE)
        accelerator = Accelerator(cpu=not on_gpu, kwargs_handlers=[patient], **options)
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
        plugin = DeepSpeedPlugin(hf_ds_config=config)
        accelerator = Accelerator(deepspeed_plugin=plugin, **options)
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


def seed_generators(seed: int) -> None:
    """Seed the generators of dropout: 50 times faster than `torch.manual_seed`, for tiny models."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


def agree(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Return, for each flag, whether any process has set it.

    All processes must leave a training at the same step.
    """
    if accelerator.num_processes == 1:
        return list(flags)
    counts = torch.tensor(flags, dtype=torch.int32, device=accelerator.device)
    return [count > 0 for count in accelerator.reduce(counts, "sum").tolist()]
