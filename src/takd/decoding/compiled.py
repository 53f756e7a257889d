"""From logits to tokens and their scores in a few kernels, which torch.compile writes for a GPU.

Run one by one, the operations of `NextTokens` read and write each number of (rows, vocabulary) about
thirty times, most of them for its noise. Compiled, they read the logits twice, and write nothing of
that size.
"""

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from takd.decoding.gumbel import negative_noise
from takd.models.logits import tempered

# Tokens that are reduced together. A whole row in one block of threads would leave most of a GPU
# idle: torch.compile splits other reductions by itself, but no argmax. Up to this size it keeps
# what it reads
CHUNK = 1024
# Numbers of (rows, vocabulary) that a process draws from before it compiles: for those, thirty
# passes of 4 bytes at 2 TB/s take as long as compiling does, about ten seconds. So a short process
# does not wait for it, and a long one loses little
WORTH_COMPILING = 1.7e11
# largest difference of log-probabilities and noise between both ways, relative to the largest logit
TOLERANCE = 64 * torch.finfo(torch.float32).eps

Function = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Kind:
    """What Python decides between logits and tokens.

    Attributes:
        models: 1, or 2 for a student and its teacher mixed.
        sample: whether tokens are drawn; if not, the likeliest are taken.
        scored: whether log-probabilities are recorded.
    """

    vocabulary: int
    models: int
    temperature: float
    sample: bool
    scored: bool


def from_logits(kind: Kind) -> Function:
    """Return a function that computes what `NextTokens.sample` does, in terms that are compiled well.

    Its arguments are logits, (models, rows, vocabulary); the logarithms of the models' shares,
    (models, 1, 1); and words of the noise, (2, rows). It returns tokens, (rows,), and their
    log-probabilities under student, teacher and mixture, (3, rows), if these are recorded.
    """
    chunks = math.ceil(kind.vocabulary / CHUNK)
    padding = chunks * CHUNK - kind.vocabulary

    def function(
        logits_kbv: Tensor, shares_k11: Tensor, words_2b: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        padded_kbv = nn.functional.pad(logits_kbv, (0, padding), value=-math.inf)
        # c: chunks, n: tokens of each
        logs_kbcn = tempered(padded_kbv.unflatten(-1, (chunks, CHUNK)), kind.temperature)
        totals_kb = logs_kbcn[..., 0, 0]
        if kind.scored:
            # a finite maximum, also of a chunk without a possible token
            most_kbc = logs_kbcn.amax(-1).clamp(min=torch.finfo(logs_kbcn.dtype).min)
            sums_kbc = (logs_kbcn - most_kbc[..., None]).exp().sum(-1)
            most_kb = most_kbc.amax(-1)
            shares_kbc = (most_kbc - most_kb[..., None]).exp()
            totals_kb = most_kb + (shares_kbc * sums_kbc).sum(-1).log()
            logs_kbcn = logs_kbcn - totals_kb[..., None, None]
        mixed_bcn = logs_kbcn[0]
        if kind.models == 2:
            mixed_bcn = torch.logaddexp(*(logs_kbcn + shares_k11[..., None]).flip(0))
        if kind.sample:
            ids_v = torch.arange(chunks * CHUNK, dtype=torch.int32, device=logits_kbv.device)
            ids_cn = ids_v.view(chunks, CHUNK)
            mixed_bcn = mixed_bcn - negative_noise(ids_cn, words_2b[..., None, None])
        best_bc, places_bc = mixed_bcn.max(-1)
        chunk_b1 = best_bc.argmax(-1, keepdim=True)
        next_b1 = chunk_b1 * CHUNK + places_bc.gather(1, chunk_b1)
        if not kind.scored:
            return next_b1[:, 0], None
        index_kb1 = next_b1.expand(kind.models, -1, -1)
        found_kb = tempered(logits_kbv.gather(-1, index_kb1)[..., 0], kind.temperature) - totals_kb
        student_b, teacher_b, mixed_b = found_kb[0], torch.zeros_like(found_kb[0]), found_kb[0]
        if kind.models == 2:
            teacher_b = found_kb[1]
            mixed_b = torch.logaddexp(*(found_kb + shares_k11[..., 0]).flip(0))
        return next_b1[:, 0], torch.stack([student_b, teacher_b, mixed_b])

    return function


@functools.cache
def _compiled(kind: Kind) -> Function:
    # few small kernels: processes to compile them in would take longer to start
    return torch.compile(from_logits(kind), fullgraph=True, options={"compile_threads": 1})


def served(device: torch.device) -> bool:
    """Whether it is worth asking torch.compile, which knows what its compiler needs."""
    return device.type == "cuda" and torch.version.cuda is not None


class Compiled:
    """The compiled function of a kind, from when it is worth compiling.

    Where it cannot be compiled (no Triton, a GPU too old for it), or finds something else than the
    operations one by one, a warning says so, and the process does without.

    Attributes:
        drawn: numbers of (rows, vocabulary) from which this process has drawn.
        works: whether nothing has failed in this process so far.
        checked: numbers of rows with which both ways have been compared.
    """

    drawn: ClassVar[float] = 0.0
    works: ClassVar[bool] = True

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.checked: set[int] = set()

    def due(self, rows: int, steps: int) -> bool:
        """Count the next steps; return whether both ways are to be compared before these."""
        Compiled.drawn += float(rows) * self.kind.vocabulary * steps
        # a run that is resumed counts from zero, and rounding would tell
        repeatable = torch.are_deterministic_algorithms_enabled()
        worth = Compiled.drawn >= WORTH_COMPILING and not repeatable
        return worth and Compiled.works and rows not in self.checked

    def ready(self, rows: int) -> bool:
        """Return whether the compiled function is used with a number of rows."""
        return Compiled.works and rows in self.checked

    def __call__(
        self, logits_kbv: Tensor, shares_k11: Tensor, words_2b: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Run the compiled function, as `from_logits` describes it."""
        if logits_kbv.shape[1] > 1:  # compiled for one row, and for any other number of them
            for tensor in (logits_kbv, words_2b):
                torch._dynamo.maybe_mark_dynamic(tensor, 1)
        # torch.compile would compile once more for each state of autocast, and a capture changes it
        with torch.autocast(logits_kbv.device.type, enabled=False, cache_enabled=False):
            return _compiled(self.kind)(logits_kbv, shares_k11, words_2b)

    def compare(
        self, run: Callable[[], None], noisy_bv: Tensor, tokens_b: Tensor, scores_4b: Tensor
    ) -> None:
        """Compare what the compiled function finds with what the operations one by one have found.

        Args:
            run: runs the compiled function, which writes the last two arguments.
            noisy_bv: log-probabilities plus noise, whose argmax is the next token.
            tokens_b, scores_4b: what was found.
        """
        expected_b, expected_4b = tokens_b.clone(), scores_4b.clone()
        try:
            run()
        except Exception as error:  # compilers raise various exceptions
            # what torch.compile adds is for those who look for faults in it
            text = " ".join(str(error).split("\n\nSet TORCH")[0].split())
            self._give_up(f"{type(error).__name__}: {text[:300]}")
            return
        size = noisy_bv.nan_to_num(0, 0, 0).abs().max().item()
        close = TOLERANCE * max(1.0, size)
        # two tokens within rounding of each other are as good
        there_b = (tokens_b >= 0) & (tokens_b < self.kind.vocabulary)
        index_b1 = tokens_b.where(there_b, 0)[:, None]
        short_b = noisy_bv.amax(-1) - noisy_bv.gather(-1, index_b1)[:, 0]
        same_b = there_b & (short_b <= close)
        near_4b = torch.isclose(scores_4b, expected_4b, rtol=0, atol=close)
        near_4b |= tokens_b != expected_b
        rows = len(tokens_b)
        if not same_b.all():
            self._give_up(f"{int((~same_b).sum())} of {rows} compiled tokens differ")
        elif not near_4b.all():
            worst = (scores_4b - expected_4b).abs()[~near_4b].max().item()
            self._give_up(f"compiled log-probabilities of {rows} rows differ by {worst:.2g}")
        self.checked.add(rows)

    def _give_up(self, reason: str) -> None:
        Compiled.works = False
        warnings.warn(
            "Decoding goes on without torch.compile between logits and tokens, and so somewhat more"
            f" slowly ({reason}).",
            stacklevel=4,
        )
