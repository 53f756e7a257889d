"""Capabilities of GPUs, by the names that clusters give them.

From NVIDIA's data sheets: "V100 Tensor Core GPU" (2020), "T4" (2019), "Quadro RTX 6000" (2019), "RTX 6000 Ada"
(2023), "A100 Tensor Core GPU" (2022), "A30" (2021), "A40" (2022), "A10" (2021), "L4" (2023), "L40S" (2023), "H100
Tensor Core GPU" (2023), "H200" (2024), "GH200" (2024), "DGX B200" (2024, an eighth of it); and the white paper
"Ampere GA102" (RTX 3090). The values were written down from memory of these sheets: a wrong peak changes only the
estimated hours of a plan. Peaks are of dense matrices; where a sheet gives a number with sparsity, it is halved here.
Compute capabilities are those of CUDA's programming guide.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from takd.experiment.schema import suggest
from takd.models.precision import resolve
from takd.runtime.errors import InputError


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a CPU core treated as one.

    Attributes:
        gigabytes: memory in units of 2^30 bytes, nominal.
        capability: compute capability.
        half: peak of dense half-precision matrix products with float32 sums, TFLOP/s; 0 if unknown, as the next two.
        single: peak of float32 outside of tensor cores, TFLOP/s.
        bandwidth: memory bandwidth, GB/s.
        others: further names that clusters and drivers use, as regular expressions.
    """

    name: str
    gigabytes: float
    capability: tuple[int, int]
    half: float = 0
    single: float = 0
    bandwidth: float = 0
    others: str = "(?!)"

    @property
    def on_cpu(self) -> bool:
        """Whether this is a CPU."""
        return self.capability == (0, 0)

    @property
    def device(self) -> str:
        """Type of torch's device."""
        return "cpu" if self.on_cpu else "cuda"

    def precision(self, setting: str = "auto", pretrained: str = "") -> str:
        """Precision that a setting gives on this GPU, as in `takd.models.precision.resolve`."""
        return resolve(setting, None if self.on_cpu else self.capability, pretrained)

    def peak(self, precision: str) -> float:
        """Peak FLOP/s in a precision."""
        return 1e12 * (self.single if precision == "fp32" else self.half)


GPUS = [
    Gpu("v100-16gb", 16, (7, 0), 125, 15.7, 900, r"v100|v100-sxm2-16gb|v100-pcie-16gb"),
    Gpu("v100-32gb", 32, (7, 0), 125, 15.7, 900, r"v100l|v100-sxm[23]-32gb.*|v100s?-pcie-32gb"),
    Gpu("t4", 16, (7, 5), 65, 8.1, 320),
    Gpu("rtx6000", 24, (7, 5), 130.5, 16.3, 672, r"quadro-?rtx-?6000|rtx_?6000"),
    Gpu("a100-40gb", 40, (8, 0), 312, 19.5, 1555, r"a100|a100_40gb|a100-(sxm4|pcie)-40gb"),
    Gpu("a100-80gb", 80, (8, 0), 312, 19.5, 2039, r"a100l|a100_80gb|a100-(sxm4-|pcie-)?80gb.*"),
    Gpu("a30", 24, (8, 0), 165, 10.3, 933),
    Gpu("a10", 24, (8, 6), 125, 31.2, 600, r"a10g"),
    Gpu("a40", 48, (8, 6), 149.7, 37.4, 696),
    Gpu("rtx3090", 24, (8, 6), 71, 35.6, 936, r"geforce-rtx-3090|rtx_?3090"),
    Gpu("l4", 24, (8, 9), 121, 30.3, 300),
    Gpu("l40s", 48, (8, 9), 362, 91.6, 864),
    Gpu("rtx6000ada", 48, (8, 9), 364.2, 91.1, 960, r"rtx-?6000-?ada.*|rtx_6000_ada"),
    Gpu("h100", 80, (9, 0), 989.5, 67, 3350, r"h100[-_]?(80gb|sxm|80gb-hbm3)?(-hbm3)?"),
    Gpu("h100-pcie", 80, (9, 0), 756, 51, 2000),
    Gpu("h200", 141, (9, 0), 989.5, 67, 4800, r"h200.*"),
    Gpu("gh200", 96, (9, 0), 989.5, 67, 4000, r"gh200.*"),
    Gpu("b200", 180, (10, 0), 2250, 75, 8000, r"b200.*"),
]

# One core, whose memory is the machine's: 90 GFLOP/s in float32 were measured for a core with AVX-512 (a server's of
# 2021).
CPU = Gpu("cpu", 0, (0, 0), 0.09, 0.09)
HALF_GAIN = 1.5  # speed in bfloat16 of a core with instructions for it: SmolLM2 had 1.1 in training, 1.8 in likelihoods


def find_gpu(name: str) -> Gpu:
    """Find a GPU by one of its names, such as `v100l`, `a100` or `Tesla V100-SXM2-32GB`.

    Raises:
        InputError: the GPU is not in the table.
    """
    if found := lookup(name):
        return found
    known = ["cpu", *(each.name for each in GPUS)]
    raise InputError(
        f"the GPU '{name}' is not in the table (src/takd/preflight/gpus.py);"
        f" name the nearest with --gpu: {suggest(name, known)}"
    )


def lookup(name: str) -> Gpu | None:
    """Return the GPU of this name, or None."""
    words = re.sub(r"\s+", "-", name.strip().lower())
    words = re.sub(r"^(nvidia-)?(tesla-)?", "", words)
    found = (each for each in [CPU, *GPUS] if re.fullmatch(f"{each.name}|{each.others}", words))
    return next(found, None)


def asked_for(resources: Mapping[str, str]) -> tuple[str, int] | None:
    """Name and number of the GPUs that a job requests on each node, from its resources; None without a request.

    Reads `gres` ("gpu:v100l:4") and, in `slurm_extra`, `--gres`, `--gpus-per-node` and `--gpus`. The name is empty
    if any GPU will do.
    """
    options = r"--(?:gres|gpus-per-node|gpus)[= ]['\"]?([\w.:-]+)"
    for text in [resources.get("gres", ""), *re.findall(options, resources.get("slurm_extra", ""))]:
        if match := re.fullmatch(r"(?:gpu:)?(?:([A-Za-z][\w.-]*):)?(\d+)", text):
            return match[1] or "", int(match[2])
        if match := re.fullmatch(r"gpu:([A-Za-z][\w.-]*)", text):
            return match[1], 1
    return None
