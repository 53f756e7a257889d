"""Counts of the work of models: forward passes, tokens in them, and positions projected to the vocabulary.

Times depend on the machine, these counts do not; `counted` works on any code that runs the models.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

KINDS = ("prefill", "decode", "score", "train")


@dataclass
class Count:
    """Work of one kind: passes, tokens through the body, positions through the output embedding."""

    passes: int = 0
    tokens: int = 0
    projected: int = 0


@dataclass
class Counts:
    """Counts by (model, kind), with the kinds of `KINDS`."""

    counts: dict[tuple[str, str], Count] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)

    def body(self, model: str, kind: str, tokens: int) -> None:
        count = self.counts.setdefault((model, kind), Count())
        count.passes += 1
        count.tokens += tokens
        self.kinds[model] = kind  # of the projection that follows

    def head(self, model: str, positions: int) -> None:
        kind = self.kinds.get(model, "score")
        self.counts.setdefault((model, kind), Count()).projected += positions

    def table(self) -> list[tuple[str, ...]]:
        """Return a header and a row for each model and kind."""
        table: list[tuple[str, ...]] = [("model", "work", "passes", "tokens", "projected")]
        order = sorted(self.counts, key=lambda key: (key[0], KINDS.index(key[1])))
        for model, kind in order:
            count = self.counts[model, kind]
            numbers = (f"{n:,}" for n in (count.passes, count.tokens, count.projected))
            table.append((model, kind, *numbers))
        return table

    def total(self) -> Counter[str]:
        """Sum the tokens of each model over all kinds."""
        total: Counter[str] = Counter()
        for (model, _), count in self.counts.items():
            total[model] += count.tokens
        return total


@contextmanager
def counted(models: Mapping[str, PreTrainedModel]) -> Iterator[Counts]:
    """Count the passes of models while the block runs."""
    counts = Counts()
    with ExitStack() as stack:
        for name, model in models.items():
            hooks = (
                model.base_model.register_forward_pre_hook(
                    _body_hook(counts, name), with_kwargs=True
                ),
                model.get_output_embeddings().register_forward_pre_hook(_head_hook(counts, name)),
            )
            for hook in hooks:
                stack.callback(hook.remove)
        yield counts


def _body_hook(counts: Counts, name: str) -> Any:
    def hook(module: torch.nn.Module, positional: Any, named: dict[str, Any]) -> None:
        ids = named["input_ids"] if named.get("input_ids") is not None else positional[0]
        cache = named.get("past_key_values")
        if cache is not None:
            kind = "decode" if cache.get_seq_length() else "prefill"
        else:
            trains = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
            kind = "train" if trains else "score"
        counts.body(name, kind, ids.numel())

    return hook


def _head_hook(counts: Counts, name: str) -> Any:
    def hook(module: torch.nn.Module, positional: Any) -> None:
        counts.head(name, positional[0].shape[:-1].numel())

    return hook
