"""CPU seconds that the demo's trainings take up to its student, as a line of the table of records.

    make demo && python benchmarks/records.py [results/demo]

The student is that of MiniLLM directly under the teacher, with the first training seed: the teacher's SFT, its own, and
the distillation. CPU seconds are those of the training processes as their logs have them, without their start, which
`benchmarks/starting.py` measures; they vary by a few percent from run to run. Append the line to the table in
docs/performance.md where a change makes it smaller and the score stays what it is.
"""

import json
import sys
from pathlib import Path

TRAININGS = ("teacher-sft", "student-sft", "teacher-sft__student-minillm")


def main() -> None:
    results = Path(sys.argv[1] if len(sys.argv) > 1 else "results/demo")
    ends = []
    for name in TRAININGS:
        log = (results / f"models/{name}/seed1/metrics.jsonl").read_text(encoding="utf-8")
        ends.append(json.loads(log.splitlines()[-1]))
    scores = results / f"evaluations/{TRAININGS[-1]}/seed1/heldout/scores.json"
    rouge = json.loads(scores.read_text(encoding="utf-8"))["scores"]["rougeL"]["mean"]
    spent = [end["cpu_seconds"] for end in ends]
    commit = (ends[-1]["commit"] or "unknown")[:7]
    cells = [commit, *(f"{seconds:.1f}" for seconds in (*spent, sum(spent))), f"{rouge:.1f}"]
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
