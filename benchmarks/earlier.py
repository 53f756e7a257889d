"""CPU seconds of a MiniLLM round, on one thread: takd as it is against an earlier checkout of it.

    python benchmarks/earlier.py FOLDER [--quick] [--json FILE] [--shape demo] [--turns N]

The rounds are those of `minillm_round.py`, each checkout's in a process of its own, in alternation. Both start with
the same models, and after some rounds their weights are compared in every bit.
"""

import hashlib
import sys
import time
from pathlib import Path

import torch
from harness import Comparison, Report, Supervisor, Worker, command_line, progress

HERE = Path(__file__).resolve().parent
LENGTHS = ("Dolly's lengths", "all at the maximum")
WARM_UP = 4  # rounds; recordings of all numbers of rows are made and checked in them


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the earlier checkout")
    parser.add_argument("--shape", default="demo", help="as in minillm_round.py")
    parser.add_argument("--turns", type=int, default=8, metavar="N", help="measured rounds of each")
    parser.add_argument(
        "--serve",
        metavar="LENGTHS",
        help="for this script's own processes: run rounds of FOLDER on request",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.serve:
        serve(arguments.folder, arguments.shape, arguments.serve, arguments.quick)
        return
    report = Report(__doc__, arguments, torch.device("cpu"))
    checkouts = {"earlier": arguments.folder.resolve(), "now": HERE.parent}
    turns = 2 if arguments.quick else arguments.turns
    for lengths in LENGTHS:
        case = f"{arguments.shape}, {lengths}"
        progress(case)
        more = ["--shape", arguments.shape, "--serve", lengths, *["--quick"] * arguments.quick]
        seconds: dict[str, list[float]] = {name: [] for name in checkouts}
        workers = {
            name: Worker(name, [sys.executable, __file__, str(folder), *more], [folder / "src"])
            for name, folder in checkouts.items()
        }
        for _ in range(turns):
            for name, worker in workers.items():
                seconds[name].append(worker.step())
                progress(f"{name}: {seconds[name][-1]:.3f} s of CPU")
        for worker in workers.values():
            worker.__exit__()
        report.add(case, Comparison(seconds, "earlier", unit="s of CPU"))
        digests = {worker.facts["digest"] for worker in workers.values()}
        same = "the same" if len(digests) == 1 else "different"
        report.note(f"{case}: after {WARM_UP} rounds the student's weights are {same}.")
    report.finish()


def serve(folder: Path, shape: str, lengths: str, quick: bool) -> None:
    """Run rounds of a checkout whenever the parent process asks for one."""
    supervisor = Supervisor(time.process_time)
    sys.path.insert(0, str(folder / "benchmarks"))
    import minillm_round

    shapes = minillm_round.QUICK if quick else minillm_round.SHAPES
    _, rounds = minillm_round.contenders(shapes[shape], lengths, torch.device("cpu"))
    for _ in range(WARM_UP):
        rounds()
    digest = hashlib.sha256()
    for parameter in rounds.student.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    supervisor.ready(digest=digest.hexdigest())
    supervisor.serve(rounds)


if __name__ == "__main__":
    main()
