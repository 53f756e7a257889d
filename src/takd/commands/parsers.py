"""Command-line options of the commands that evaluate, adopt and export models."""

import argparse
from pathlib import Path
from typing import Any


def adopt(parser: argparse.ArgumentParser) -> None:
    """Add the options of `adopt`."""
    add = parser.add_argument
    text = "results of an experiment, here or from elsewhere"
    add("folder", type=Path, metavar="FOLDER", help=text)
    text = "default: that of config/config.yaml"
    add("--store", type=Path, metavar="FOLDER", help=text)
    text = "experiment to compare with (default: that of the folder's name)"
    add("--experiment", metavar="NAME", help=text)
    text = "take them for models of the current code (look at what changed first)"
    add("--accept-code", action="store_true", help=text)


def evaluate(parser: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate`."""
    add = parser.add_argument
    path: dict[str, Any] = {"type": Path, "metavar": "FOLDER"}
    text = "config.json, safetensors and tokenizer; or the name of a model on the hub"
    add("--model", required=True, type=Path, metavar="FOLDER|OWNER/NAME", help=text)
    text = "branch, tag or commit of a model on the hub (default: main)"
    add("--revision", default="main", help=text)
    text = "JSON lines or folders of data; NAME=FILE names a set"
    add("--data", required=True, nargs="+", metavar="FILE", help=text)
    add("--output", help="default: results/evaluated-MODEL", **path)
    add("--tokenizer", help="default: that of the model", **path)
    add("--name", help="name of the model (default: that of its folder)")
    text = "columns of the rows, as in instruction=question output=answer"
    add("--columns", nargs="+", default=[], metavar="NAME=COLUMN", help=text)
    add("--rows", type=_count, metavar="COUNT", help="first rows of each set (default: all)")
    text = "alpaca, chat (the tokenizer's), or a text with {instruction} (default: alpaca)"
    add("--template", default="alpaca", help=text)
    text = "a text with {instruction} and {input} (default: the input on the next line)"
    add("--template-with-input", metavar="TEXT", help=text)
    add("--system", metavar="TEXT", help="system prompt of the template chat")
    add("--answer", metavar="PATTERN", help="regular expression of the final answer, with a group")
    add("--seeds", type=int, nargs="+", help="decoding seeds (default: 10 20 30 40 50)")
    add("--greedy", action="store_true", help="take the likeliest tokens, with one seed")
    add("--temperature", type=float, help="default: 1")
    add("--top-k", type=int, help="default: 0, all tokens")
    add("--top-p", type=float, help="default: 1")
    add("--max-prompt-length", type=_count, default=256, metavar="TOKENS")
    add("--max-new-tokens", type=_count, default=256, metavar="TOKENS")
    add("--precision", default="auto", help="auto, fp32, bf16 or fp16")
    add("--rouge-tokenizer", default="auto", help="auto, standard or unicode")
    add("--processes", type=_count, default=1, help="one per GPU")
    add("--threads", type=_count, default=1, help="of each process")
    text = "rows of a pass over texts, for log-likelihoods"
    add("--micro-batch", type=_count, default=64, help=text)
    add("--json", action="store_true", help="print JSON")


def export(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    add = parser.add_argument
    text = "name of an experiment, or a folder of results"
    add("results", metavar="EXPERIMENT|FOLDER", help=text)
    add("--format", choices=["lm-eval"], default="lm-eval", help="lm-evaluation-harness")
    add("--output", type=Path, metavar="FOLDER", help="default: results/lm-eval/EXPERIMENT")
    add("--samples", action="store_true", help="write the responses, too")
    add("--config", metavar="NAME=VALUE", nargs="+", default=[], help="variables of the experiment")


def power(parser: argparse.ArgumentParser) -> None:
    """Add the options of `power`."""
    add = parser.add_argument
    text = "what has results so far, finished or not"
    add("results", metavar="EXPERIMENT|FOLDER", help=text)
    add("--difference", type=_above, default=1.0, help="in points (default: 1.0)")
    add("--power", type=_share, default=0.8, help="probability of telling it (default: 0.8)")
    add("--level", type=_share, default=0.05, help="of one test (default: 0.05)")
    measures = ["rougeL", "exact_match", "answer_accuracy"]
    add("--measure", choices=measures, default="rougeL", help="default: rougeL")
    add("--set", metavar="NAME", help="evaluation set (default: the first)")
    add("--config", metavar="NAME=VALUE", nargs="+", default=[], help="variables of the experiment")
    add("--json", action="store_true", help="print JSON")


def _above(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number greater than 0")
    return found


def _share(text: str) -> float:
    found = _above(text)
    if found >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be between 0 and 1, as 0.8")
    return found


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)
