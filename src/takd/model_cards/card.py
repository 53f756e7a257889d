"""Stage: write the model card of one model for the Hugging Face Hub (Mitchell et al., Model Cards, 2019).

Inputs: `models` and `evaluations` (the folders above the lineages). Outputs: `card`, and, undeclared,
`model/README.md` with the same bytes. Snakemake allows no output inside another rule's output; the card is written
into the model's folder all the same, since that folder is what users copy or upload. This makes nothing stale: a
model is identified by its manifest, which has the digest of the weights.
"""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from takd.analysis import table
from takd.analysis.costs import device_text
from takd.analysis.measures import measured
from takd.analysis.result_files import wall_minutes
from takd.analysis.results import JsonRow, Model, Results, read
from takd.analysis.table import SCORE
from takd.analysis.text import PAPERS
from takd.data.template import CHAT, fill
from takd.experiment.captions import decoding
from takd.experiment.labels import chain_text, methods_text
from takd.experiment.lineage import is_given, own, split
from takd.model_cards import markdown
from takd.model_cards.frontmatter import commit_of, front_matter
from takd.pages.environment import environment
from takd.runtime.errors import InputError
from takd.runtime.files import read_json, write_text
from takd.runtime.records import faults, read_record, remade
from takd.runtime.stage import Stage

PINS = {"sha256": "sha256", "rows_sha256": "sha256 of its rows"}
"""What else than a commit says the content of a data set."""


def run(stage: Stage) -> None:
    """Write the card beside the model and into its folder.

    Raises:
        InputError: a file is missing, damaged or of another model; the model's folder is not there.
    """
    results = read(stage.spec, stage.input("models"), stage.input("evaluations"))
    folder, manifest = (stage.outputs["card"].parent / x for x in ("model", "manifest.json"))
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: holds no model (config.json); train it again.")
    for fault in faults(manifest, read_record(manifest), ["model"], stage.threads):
        raise remade(fault, manifest)
    chat = stage.spec["template"] == CHAT or has_chat_template(folder)
    text = card(results, chat)
    # Snakemake's time stamp is not needed here and should not be uploaded
    (folder / ".snakemake_timestamp").unlink(missing_ok=True)
    write_text(folder / "README.md", text)
    # last, since this output marks the stage as complete
    write_text(stage.outputs["card"], text)
    (node,) = results.nodes
    stage.say(f"{node.lineage} seed {node.seed}: model card")


def has_chat_template(folder: Path) -> bool:
    """Return whether the tokenizer in a model's folder has a chat template."""
    settings = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (
        settings.is_file() and bool(read_json(settings).get("chat_template"))
    )


def card(results: Results, chat: bool) -> str:
    """Render the card of the one model in `results`: front matter and Markdown.

    `chat` tells whether its tokenizer has a chat template.
    """
    made = environment(Path(__file__).parent, autoescape=False, keep_trailing_newline=True)
    made.filters |= {"md": markdown.plain, "code": markdown.code, "fence": markdown.fence}
    # a prompt of the first evaluation set with its references; None if the report shows no samples
    prompts = results.samples[results.spec["sets"][0]].values()
    shown = next((row for rows in prompts for row in rows.values()), None)
    body = made.get_template("card.md.jinja").render(
        **_facts(results),
        papers=PAPERS,
        chat=chat,
        example=shown,
        snippet=snippet(results.spec, chat, shown),
    )
    head = front_matter(results)
    text = str(ModelCard(f"---\n{head.to_yaml(line_break=chr(10))}\n---\n\n{body}"))
    ModelCard(text)  # fails if the card cannot be read back
    return text


def _facts(results: Results) -> dict[str, Any]:
    spec, (model,) = results.spec, results.models.values()
    node = model.node
    given = is_given(node.lineage)
    unused = ("train", "corpus") if given else ()
    evaluations = {name: results.evaluations[node, name] for name in spec["sets"]}
    return {
        "given": given,
        "weights": [
            (name.removeprefix("model/"), digest)
            for name, digest in sorted(model.weights.items())
            if name.startswith("model/")
        ],
        "name": f"{chain_text(node.lineage)} ({methods_text(node.lineage)})",
        "node": node,
        "spec": spec,
        "manifest": model.manifest,
        "hops": [
            {
                "model": hop.model,
                "method": hop.method,
                "parameters": spec["models"][own(hop.model)],
                "from": weights_text(spec["weights"][own(hop.model)]),
            }
            for hop in split(node.lineage)
        ],
        "training": {} if given else _training(model),
        "sources": {
            name: source_text(source)
            for name, source in spec["sources"].items()
            if name not in unused
        },
        "rows": _evaluation(results),
        "prompts": {name: each.scores["n"] for name, each in evaluations.items()},
        "tokens": {name: each.rouge_tokenizer for name, each in evaluations.items()},
        "decoding": decoding(spec["decoding"]),
    }


def weights_text(source: dict[str, Any]) -> str:
    """Describe the source of the weights, without local paths."""
    if "scratch" in source:
        return "random weights"
    if "hub" in source:
        text = f"{source['hub']} of the hub, revision {source['revision']}"
    else:
        kind = "folder" if "folder" in source else "gguf"
        text = f"a local {kind.replace('gguf', 'GGUF file')}, {Path(source[kind]).name}"
    layers = source.get("keep_layers")
    return f"{text}, {json.dumps(layers)} of its layers" if layers is not None else text


def source_text(source: dict[str, Any]) -> str:
    """Describe the source of data, without local paths."""
    for kind in ("json", "text", "folder"):
        if kind in source:
            return f"{Path(source[kind]).name} (local)"
    if "demo" in source:
        return f"takd's generator of demonstration data, part {source['demo']['part']}"
    place = source.get("hub") or source["url"]
    also = [f"{key} {source[key]}" for key in ("config", "split", "file") if source.get(key)]
    if commit := commit_of(source):
        also.append(f"revision {commit}")
    else:  # of a branch that moves: what its content has to be
        also += [f"{what} {source[key]}" for key, what in PINS.items() if source.get(key)]
    return ", ".join([place, *also])


def _training(model: Model) -> dict[str, Any]:
    """Settings and outcome of the training."""
    manifest, seed = model.manifest, model.node.seed
    settings = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in sorted(manifest["spec"].get("settings", {}).items())
    }
    kept = {
        f"kept: best {name} on dev": f"{best['value']:.4g}, step {best['step']}"
        for name, best in sorted(manifest["best"].items())
        if best["step"] is not None and best["value"] is not None
    }
    return settings | {
        "start": f"SFT seed {seed}" if "init" in manifest["inputs"] else "starting weights",
        "training seed": str(seed),
        "steps in all": str(manifest["steps"]),
        "precision": str(manifest.get("precision", "unknown")),
        "device": device_text(model.end),
        "minutes": f"{wall_minutes(model.end):.1f}",
        "tokens": str(int(model.end.get("tokens", 0))),
        **kept,
    }


def _evaluation(results: Results) -> list[dict[str, Any]]:
    """One row per measure: its value on each set, with the confidence interval where it has one."""
    rows = []
    for measure in measured(results):
        wanted = {"kind": SCORE, "measure": measure.name}
        scores = (table.one(table.of(results), set=x, **wanted) for x in results.spec["sets"])
        cells = [score.text() if score else "" for score in scores]
        rows.append({"title": measure.title, "better": measure.better, "cells": cells})
    return rows


def snippet(spec: dict[str, Any], chat: bool, example: JsonRow | None) -> str:
    """Program that asks the model the example as in the evaluation, run from the folder of the card."""
    asked = example or {"instruction": "Name three colours.", "input": ""}
    instruction, given = asked["instruction"], asked["input"]
    record = spec["decoding"]
    drawn = {"do_sample": record["sample"]}
    if record["sample"]:
        drawn |= {key: record[key] for key in ("temperature", "top_k", "top_p")}
    if record["no_repeat_ngram"]:
        drawn["no_repeat_ngram_size"] = record["no_repeat_ngram"]
    drawn["max_new_tokens"] = record["max_new_tokens"]
    if chat:
        message = {"role": "user", "content": instruction} | ({"input": given} if given else {})
        if spec["template"] == CHAT and given:
            message = {"role": "user", "content": f"{instruction}\n{given}"}
        messages = json.loads(asked["messages"]) if asked.get("messages") else [message]
        prompt = f"""\
messages = {messages!a}
inputs = tokenizer.apply_chat_template(
    messages,
    add_generation_prompt=True,
    return_dict=True,
    return_tensors="pt",
    tokenizer_kwargs={{"return_token_type_ids": False}},
)"""
    else:
        prompt = f"""\
prompt = {fill(spec["template"], instruction, given)!a}
inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)"""
    return f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

set_seed({spec["decoding_seeds"][0]})
folder = "."  # of this file, or the model's name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
{prompt}
output = model.generate(
    **inputs,
{"".join(f"    {key}={value!r},{chr(10)}" for key, value in drawn.items())}\
    eos_token_id=model.generation_config.eos_token_id,
    pad_token_id=tokenizer.pad_token_id,
)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""
