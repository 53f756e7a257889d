"""The model in training, in its two uses: forward passes with a loss, and sampling."""

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers import PreTrainedModel

from takd.methods.base import LossFunction, Statistics
from takd.models.causal_lm import compile_training
from takd.models.logits import unchanged, without_autocast
from takd.models.lora import plain_weights
from takd.training.exporting import Exported


class LossModule(nn.Module):
    """The student and its loss as one module: DDP and DeepSpeed hook into its forward."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.config = model.config  # DeepSpeed resolves "auto" values from it

    def forward(self, loss: LossFunction, rows: Sequence[Any]) -> Any:
        assert self.model.training, "Student.train comes first"
        return loss(self.model, rows)


@dataclass
class Student:
    """A model with its optimizer, on its device.

    Attributes:
        model: the model, not yet on its device when given; parameters without gradients are not
            trained.
        settings: settings of the method.
        compiled: whether training passes use torch.compile.
        dtype: dtype of the copy that samples under ZeRO-3.
        decays_all: whether weight decay includes biases and norms.
        module: the model with its loss, wrapped by DDP or DeepSpeed; used in all training passes.
        trained: its parameters with gradients.
    """

    accelerator: Accelerator
    model: PreTrainedModel
    settings: dict[str, Any]
    compiled: bool = False
    dtype: torch.dtype = torch.float32
    decays_all: bool = False

    def __post_init__(self) -> None:
        s = self.settings
        self._sharded = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        if self._sharded:  # before DeepSpeed adds hooks to the model
            self._shape = _unfilled(self.model, torch.float32, torch.device("cpu"))
        # ZeRO-3 shards each parameter over processes, so a whole copy of the model is used for
        # sampling
        self._copy: PreTrainedModel | None = None
        plugin = self.accelerator.state.deepspeed_plugin
        if plugin is not None and plugin.zero_stage == 3:
            self._copy = _unfilled(self.model, self.dtype, self.accelerator.device)
        if self.compiled:
            compile_training(self.model, self.accelerator.device)
        module = LossModule(self.model)
        optimizer = torch.optim.AdamW(
            parameter_groups(module, s["weight_decay"], self.decays_all),
            lr=s["learning_rate"],
            betas=tuple(s["betas"]),
            fused=s["deepspeed"] is None,
        )
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.trained = [p for p in self.module.parameters() if p.requires_grad]

    def train(self) -> None:
        """Switch all modules to training mode, with dropout."""
        self.module.train()  # DeepSpeed's engine does not say whether its module trains

    def passes(
        self, micro_batches: Sequence[tuple[LossFunction, Sequence[Any]]]
    ) -> Iterator[tuple[Tensor, Statistics]]:
        """Run the passes of a step, forward and backward; yield loss and statistics of each.

        Processes exchange gradients in the last pass only. Until then autocast keeps its
        half-precision copies of the weights, which every pass would make anew.
        """
        accelerator, steps = self.accelerator, len(micro_batches)
        accelerator.step, accelerator.gradient_accumulation_steps = 0, steps
        # Accelerate or DeepSpeed averages over processes and passes; these losses are sums
        scale = accelerator.num_processes * (
            self.module.gradient_accumulation_steps() if self._sharded else steps
        )
        with accelerator.autocast(), unchanged(self.model):
            for loss_of, rows in micro_batches:
                with accelerator.accumulate(self.module):
                    loss, statistics = self.module(loss_of, rows)
                    with without_autocast(accelerator.device):
                        accelerator.backward(loss * scale)
                yield loss.detach(), statistics

    def update(self, clip: float) -> Tensor:
        """Clip the gradients and update the weights; return the norm of the gradients, a scalar.

        An update with a norm that is not finite is left out.
        """
        norm = self.accelerator.clip_grad_norm_(self.trained, clip)
        # DeepSpeed clips by itself, and may report no norm
        norm = torch.as_tensor(math.nan if norm is None else norm)
        if not self._sharded and self.accelerator.scaler is None:
            # read by the optimizer on its device, as a loss scaler's: the host need not wait
            self.optimizer.optimizer.found_inf = (~norm.isfinite()).float()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    @contextlib.contextmanager
    def whole(self) -> Iterator[PreTrainedModel]:
        """Yield the model in evaluation mode, with all its parameters, to sample or evaluate."""
        self.module.eval()
        model = self.model if self._copy is None else self._refreshed(self._copy)
        with self.accelerator.autocast(), torch.no_grad(), unchanged(model):
            yield model if model is self.model else model.eval()

    @torch.no_grad()
    def _refreshed(self, whole: PreTrainedModel) -> PreTrainedModel:
        """Update the copy with the current parameters.

        Under ZeRO-3 each layer of the model itself would have to be gathered by all processes at
        once, but they sample responses of different lengths.
        """
        import deepspeed

        for mine, parameter in zip(whole.parameters(), self.model.parameters(), strict=True):
            with deepspeed.zero.GatheredParameters([parameter]):
                mine.copy_(parameter)
        return whole

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Copy trained tensors to the CPU: `model` by name, `optimizer` by index and quantity."""
        parameters = self.model.named_parameters()
        moments = self.optimizer.state_dict()["state"]
        return {
            "model": {name: _copied(p) for name, p in parameters if p.requires_grad},
            "optimizer": {
                f"{index}.{name}": _copied(value)
                for index, state in moments.items()
                for name, value in state.items()
            },
        }

    @torch.no_grad()
    def restore(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Restore a `state`."""
        parameters = dict(self.model.named_parameters())
        for name, value in state["model"].items():
            parameters[name].copy_(value)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state["optimizer"].items():
            index, name = key.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def export(self, folder: Path, exported: Exported) -> None:
        """Write a plain Hugging Face folder: merged weights and the `exported` files."""
        model = self._masters() if self._sharded else self.model
        if self.accelerator.is_main_process:
            assert model is not None
            exported.write(model, plain_weights(model), folder)
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def _masters(self) -> PreTrainedModel | None:
        """Return the float32 model in the main process, and None in others.

        DeepSpeed's own module has rounded weights, or only a part of them.
        """
        import deepspeed
        from deepspeed.utils import safe_get_full_fp32_param

        whole = None
        if self.accelerator.is_main_process:
            whole = _unfilled(self._shape, torch.float32, torch.device("cpu"))
        targets = repeat(None) if whole is None else whole.parameters()
        # gathering a parameter is a collective operation: all processes must take part
        for target, parameter in zip(targets, self.model.parameters(), strict=False):
            value = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
            with deepspeed.zero.GatheredParameters([parameter], enabled=value is None):
                if target is not None:
                    target.copy_(parameter if value is None else value)
        return whole


def parameter_groups(
    module: nn.Module, weight_decay: float, decays_all: bool
) -> list[dict[str, Any]]:
    """Return the trained parameters in groups with and without weight decay.

    Matrices always decay, biases and norms only with `decays_all`.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decays = [decays_all or parameter.ndim > 1 for parameter in trained]
    groups = [
        {
            "params": [p for p, own in zip(trained, decays, strict=True) if own == decay],
            "weight_decay": weight_decay if decay else 0.0,
        }
        for decay in (True, False)
    ]
    return [group for group in groups if group["params"]]  # DeepSpeed does not accept empty groups


def _unfilled(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Return the model in another dtype, with uninitialised parameters.

    The original's values are never copied, which would need memory for a second model.
    """
    empty: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device), False)
        for parameter in model.parameters()
    }
    return cast(PreTrainedModel, nn.Module.to(copy.deepcopy(model, empty), device))


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
