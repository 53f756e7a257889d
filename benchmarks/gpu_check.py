"""Check on a GPU that every stage runs, that its numbers are right, and how fast it is, in at most eight minutes.

    python benchmarks/gpu_check.py [--quick] [--json FILE] [--only NAME …] [--seconds N]

Stages come in order of importance. Each has a budget and a process of its own: one that fails, crashes or takes too
long says so, and the next one begins; what it found before is kept. The JSON is written after every stage; on a card it
goes to `benchmarks/results/gpu/<card>-<date>.json` unless told otherwise, and `benchmarks/table.py` puts it into
docs/performance.md. Without a card, and with --quick, all sizes are tiny: this shows that the script runs, no more.

A stage is "ok", or it has "failed": a part of it raised an error, or a number missed its bound. What a bound says is in
the stage's own documentation (`benchmarks/gpu_checks/`).
"""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from harness import command_line, commit, machine, progress, start

ROOT = Path(__file__).resolve().parent.parent
PLACES = [str(ROOT / folder) for folder in ("src", "tests", "benchmarks")]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
SECONDS = 470.0
# with less than this share of its budget, a stage does not begin
LEAST = 0.4
# on a CPU, sizes are tiny and the cores may be busy: what budgets are multiplied by
PATIENCE = 3

# Name, what runs, and its budget in seconds, in order of importance.
STAGES: list[tuple[str, str, float]] = [
    ("facts", "gpu_checks.facts:facts", 20),
    ("families", "gpu_checks.scripts:families", 70),
    ("gates", "gpu_checks.numerics:gates", 40),
    ("parity", "gpu_checks.numerics:parity", 35),
    ("graphs", "gpu_checks.numerics:graphs", 40),
    ("compiled", "gpu_checks.compiled:compiled_draws", 45),
    ("overflow", "gpu_checks.numerics:overflow", 20),
    ("resume", "gpu_checks.scripts:resume", 60),
    ("zero", "gpu_checks.scripts:zero", 60),
    ("decoding", "gpu_checks.speed:decoding", 75),
    ("minillm", "gpu_checks.speed:minillm", 80),
    ("training", "gpu_checks.speed:training", 35),
    ("asking", "gpu_checks.scripts:asking", 40),
]


def main() -> int:
    parser = command_line(__doc__)
    names = [name for name, _, _ in STAGES]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these stages")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of all stages together")
    arguments = parser.parse_args()
    device = start(arguments)
    quick = arguments.quick or device.type == "cpu"
    path = arguments.json or (None if device.type == "cpu" else default_path())
    began = time.monotonic()
    result: dict[str, Any] = {
        "benchmark": "gpu_check",
        "command": " ".join(["python", "benchmarks/gpu_check.py", *sys.argv[1:]]),
        "quick": quick,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(device),
        "stages": {},
    }
    sys.path[:0] = PLACES
    # for the processes of stages, which start anew
    os.environ["PYTHONPATH"] = os.pathsep.join([*PLACES, os.environ.get("PYTHONPATH", "")])
    from gpu_checks.running import supervised

    for name, target, budget in STAGES:
        if name not in arguments.only:
            continue
        left = arguments.seconds - (time.monotonic() - began)
        if left < LEAST * budget:
            result["stages"][name] = {"ended": "skipped", "seconds": 0.0, "budget": budget}
            progress(f"{name}: skipped, {left:.0f} s are left")
        else:
            budget *= PATIENCE if quick else 1
            found = supervised(target, min(budget, left), quick)
            result["stages"][name] = found
            progress(f"{name}: {found['ended']}, {found['seconds']:.0f} s")
            for line in [*found["missed"], *found["failed"].values()]:
                progress(f"  {line.strip().splitlines()[-1]}")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(summary(result), indent=1, ensure_ascii=False))
    if path is not None:
        progress(f"written to {path}")
    return int(any(stage["ended"] != "ok" for stage in result["stages"].values()))


def default_path() -> Path:
    """Return the file for the results of this GPU and day."""
    card = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return RESULTS / f"{card}-{time.strftime('%Y-%m-%d')}.json"


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Map each stage to how it ended and what it measured."""
    return {
        name: stage["ended"] if not stage.get("found") else {stage["ended"]: stage["found"]}
        for name, stage in result["stages"].items()
    }


if __name__ == "__main__":
    sys.exit(main())
