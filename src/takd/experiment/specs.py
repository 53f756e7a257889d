"""The settings of each stage, as functions of a checked experiment and of the wildcards of the stage's rule.

Equal settings give equal text as canonical JSON: a stage runs again when they change (docs/staleness.md).
"""

from collections.abc import Callable
from itertools import filterfalse
from typing import Any

from takd.data.letters import truth
from takd.experiment import budget, schema
from takd.experiment import lineage as lineages
from takd.experiment.experiment import Experiment
from takd.experiment.looks import look
from takd.experiment.sources import given_elsewhere, source_of, with_digests
from takd.experiment.validation.common import own_training
from takd.experiment.validation.training import DEEPSPEED
from takd.methods.registry import METHODS
from takd.models.starting_weights import weights_digests
from takd.runtime.files import model_folder, read_json

Spec = dict[str, Any]

# endings of files that may lie in a tokenizer's folder and are no part of the tokenizer
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
NUMBERS = ("seed", "part", "parts", "seeds")


def of(experiment: Experiment, stage: str, **wildcards: str) -> Spec:
    """Return the settings of a stage, given the wildcards of its rule as text."""
    values = {name: int(text) if name in NUMBERS else text for name, text in wildcards.items()}
    return STAGES[stage](experiment, **values)


def tokenizer(experiment: Experiment) -> Spec:
    """Settings of the stage that prepares the tokenizer."""
    source = dict(experiment.settings["tokenizer"])
    template = _template(experiment)
    if "train" in source:
        return {"source": source, "text": source_of(experiment, "train"), "template": template}
    if "words" in source:
        return {"source": source, "template": template}
    if "hub" not in source:
        source = with_digests(experiment.root, source, but=WEIGHTS)
    spec: Spec = {"source": source, "template": template}
    if given := dict(given_elsewhere(experiment, source)):
        spec["given"] = given
    data = experiment.settings["data"]
    chat = {"system": data["system"], "variables": data["template_variables"]}
    return spec | {name: value for name, value in chat.items() if value}


def data(experiment: Experiment, split: str) -> Spec:
    """Settings of the stage that tokenises a split."""
    settings = experiment.settings["data"]
    spec: Spec = {"split": split, "source": source_of(experiment, split)}
    if split == "corpus":
        corpus = settings["corpus"]
        length = corpus["block_length"] or settings["max_length"]
        return {**spec, "block_length": length, "blocks": corpus["blocks"]}
    spec |= {
        "template": _template(experiment),
        "max_length": settings["max_length"],
        "max_prompt_length": settings["max_prompt_length"],
        "drop_duplicates": split == "train" and settings["drop_duplicates"],
    }
    if split == "train":
        held_out = experiment.sets if settings["drop_leaks"] else []
        spec["drop_leaks"] = settings["drop_leaks"]
        spec["exclude"] = [source_of(experiment, name) for name in held_out]
    else:  # responses are scored against its references
        spec["rouge_tokenizer"] = experiment.settings["evaluation"]["rouge_tokenizer"]
    return spec | _answer(experiment, split)


def data_report(experiment: Experiment) -> Spec:
    """Settings of the stage that summarises the data."""
    splits = {name: source_of(experiment, name) for name in experiment.splits}
    return {"splits": splits, "sets": experiment.sets}


def base(experiment: Experiment, model: str) -> Spec:
    """Settings of the stage that fetches or makes a model's starting weights."""
    weights = dict(experiment.settings["models"][model]["weights"])
    if "folder" in weights:
        weights["folder"] = model_folder(experiment.root, weights["folder"])
        weights["sha256"] = weights_digests(experiment.root / weights["folder"])
    elif "gguf" in weights:
        weights = with_digests(experiment.root, weights)
    spec = {"model": model, "weights": weights, "parameters": experiment.parameters[model]}
    if "scratch" in weights:
        return spec  # its positions are checked when the experiment is read
    return {**spec, "max_length": experiment.settings["data"]["max_length"]}


def given(experiment: Experiment, model: str) -> Spec:
    """Settings of the stage that takes a model as it is: those of its weights, and its lineage."""
    node = lineages.Node(lineages.join([lineages.Hop(model, lineages.GIVEN)]), lineages.GIVEN_SEED)
    return {**base(experiment, model), **node._asdict(), "method": lineages.GIVEN}


def made_with(experiment: Experiment, node: lineages.Node) -> Spec:
    """Settings of the stage that trains or takes a model."""
    if lineages.is_given(node.lineage):
        return given(experiment, lineages.split(node.lineage)[0].model)
    return train(experiment, *node)


def train(experiment: Experiment, lineage: str, seed: int) -> Spec:
    """Settings of the stage that trains the last model of a lineage."""
    model, method = lineages.split(lineage)[-1]
    settings = experiment.training(model, method)
    settings.pop("objective", None)  # it only selects defaults of other settings
    if of_budget := experiment.budget_of(lineage, seed):
        settings |= {"steps": None, "epochs": None}
    if settings["deepspeed"]:
        path = schema.own_or_shipped(experiment.root, f"{DEEPSPEED}/{settings['deepspeed']}.json")
        settings["deepspeed"] = {"name": settings["deepspeed"], "config": read_json(path)}
    spec = {
        "lineage": lineage,
        "seed": seed,
        "model": lineages.own(model),
        "method": method,
        "settings": settings,
        "max_length": experiment.settings["data"]["max_length"],
        "max_prompt_length": experiment.settings["data"]["max_prompt_length"],
        "dev_decoding": _decoding(experiment, "dev_decoding"),
        **of_budget,
    }
    if teacher := lineages.teacher_of(lineage):
        spec["teacher"] = experiment.trained_with(teacher, seed, lineage)
        spec["asks_teacher"] = METHODS[method].asks_teacher(settings)
    if settings.get("start") == lineages.SUPERVISED:  # the student's own supervised run
        spec["init"] = [lineages.supervised(model), seed]
    return spec


def generations(experiment: Experiment, teacher: str, seed: int) -> Spec:
    """Settings of the stage that joins a teacher's generations, without the number of parts."""
    settings = experiment.settings["teacher_cache"]
    length = experiment.longest_response
    return {
        "lineage": teacher,
        "seed": seed,
        "noise": settings["seed"],
        "decoding": {"temperature": settings["temperature"], "max_new_tokens": length},
        "precision": settings["precision"],
    }


def generate(experiment: Experiment, teacher: str, seed: int, part: int, parts: int) -> Spec:
    """Settings of the stage that generates a teacher's responses to one part of the prompts."""
    return {**generations(experiment, teacher, seed), "part": part, "parts": parts}


def outputs(experiment: Experiment, teacher: str, seed: int, read: str, kind: str) -> Spec:
    """Settings of the stage that stores a teacher's distributions for the tokens of some data.

    Args:
        read: `train`, `corpus` or `generations`.
        kind: `top_k` or `hidden`.
    """
    settings = experiment.settings["teacher_cache"]
    spec = {"lineage": teacher, "seed": seed, "split": read, "kind": kind}
    spec["precision"] = settings["precision"]
    return {**spec, "top_k": settings["top_k"]} if kind == "top_k" else spec


def evaluate(experiment: Experiment, lineage: str, seed: int, set: str) -> Spec:
    """Settings of the stage that scores a model on an evaluation set."""
    spec = _evaluated(experiment, lineage, seed, set)
    return spec | {"decoding": _decoding(experiment, "decoding")} | _answer(experiment, set)


def likelihoods(experiment: Experiment, lineage: str, seed: int, set: str) -> Spec:
    """Settings of the stage that computes likelihoods and divergences from the teachers."""
    spec = _evaluated(experiment, lineage, seed, set)
    spec["teachers"] = _compared_with(experiment, lineage, seed)
    if (evaluation := experiment.settings["evaluation"])["exact"]:
        spec["exact"] = {"tokens": experiment.longest_response, **truth(evaluation["sets"][set])}
    return spec


def judge(experiment: Experiment, lineage: str, seed: int, set: str) -> Spec:
    """Settings of the stage that lets another model rate responses, if there is a judge."""
    evaluation = experiment.settings["evaluation"]
    seeds = evaluation["judge"]["seeds"] or evaluation["seeds"][:1]
    judge = {**evaluation["judge"], "seeds": seeds}
    return {"lineage": lineage, "seed": seed, "set": set, "judge": judge}


def report(experiment: Experiment) -> Spec:
    """Settings of the stage that makes the report."""
    settings = experiment.settings
    models = settings["models"]
    return {
        "experiment": experiment.name,
        "title": settings["title"] or experiment.name,
        "description": settings["description"],
        "models": experiment.parameters,
        "weights": {name: model["weights"] for name, model in models.items()},
        "tokenizer": settings["tokenizer"],
        "chains": experiment.chains,
        "nodes": [list(node) for node in experiment.nodes],
        "teacher_cache": [list(entry) for entry in experiment.teacher_cache],
        "sets": experiment.sets,
        "seeds": experiment.seeds,
        "decoding": _decoding(experiment, "decoding"),
        "dev_decoding": _decoding(experiment, "dev_decoding"),
        "decoding_seeds": settings["evaluation"]["seeds"],
        "targets": settings["report"]["targets"],
        "samples": settings["report"]["samples"],
        "judge": settings["evaluation"]["judge"],
        "training": settings["training"],
        "overrides": {
            name: found
            for name in (*models, *settings.get("arms", ()))
            if (found := own_training(settings, name))
        },
        **budget.of_report(settings, experiment.lineages),
        **({"until": settings["until"]} if "until" in settings else {}),
    }


def card(experiment: Experiment, lineage: str, seed: int) -> Spec:
    """Settings of the stage that writes the card of one model.

    They cover the models of its chain only, so that adding a chain or a seed rewrites no card.
    """
    names = [lineages.own(hop.model) for hop in lineages.split(lineage)]
    whole = report(experiment)
    kept = ("experiment", "title", "description", "sets", "decoding", "decoding_seeds")
    splits = {name: data(experiment, name) for name in experiment.splits if name != "dev"}
    return {
        **{key: whole[key] for key in kept},
        "nodes": [[lineage, seed]],
        "models": {name: experiment.parameters[name] for name in names},
        "weights": {name: whole["weights"][name] for name in names},
        # also needed to read the evaluations
        "chains": [],
        "teacher_cache": [],
        # a prompt as the example
        "samples": 1,
        "license": experiment.settings["license"],
        "judge": bool(whole["judge"]),
        "sources": {name: spec["source"] for name, spec in splits.items()},
        "template": _template(experiment),
    }


STAGES: dict[str, Callable[..., Spec]] = {
    stage.__name__: stage
    for stage in (
        *(tokenizer, data, data_report, base, given, train, generate, generations, outputs),
        *(evaluate, likelihoods, judge, look, report, card),
    )
}


def _evaluated(experiment: Experiment, lineage: str, seed: int, set: str) -> Spec:
    evaluation = {key: experiment.settings["evaluation"][key] for key in ("seeds", "precision")}
    length = experiment.settings["data"]["max_length"]
    return {"lineage": lineage, "seed": seed, "set": set, **evaluation, "max_length": length}


def _compared_with(experiment: Experiment, lineage: str, seed: int) -> dict[str, list[Any]]:
    """Direct and first teacher of a model, as [lineage, training seed].

    A supervised student, which has no teacher, is compared with the head of its chains if they
    have only one.
    """
    if direct := lineages.teacher_of(lineage):
        names = {"direct": direct, "first": lineages.prefixes(lineage)[0]}
    else:
        model = lineages.start(lineages.split(lineage)[0].model)
        chains = map(lineages.split, filterfalse(lineages.control_of, experiment.lineages))
        heads = {h[0] for h in chains if model in [lineages.start(hop.model) for hop in h[1:]]}
        names = {"first": lineages.join(heads)} if len(heads) == 1 else {}
    return {
        role: experiment.trained_with(teacher, seed, lineage) for role, teacher in names.items()
    }


def _answer(experiment: Experiment, split: str) -> Spec:
    """Pattern of the final answers of an evaluation set that has one."""
    source = experiment.settings["evaluation"]["sets"].get(split, {})
    return {"answer": source["answer"]["pattern"]} if "answer" in source else {}


def _decoding(experiment: Experiment, which: str) -> dict[str, Any]:
    settings = experiment.settings["evaluation"][which]
    return {**settings, "max_new_tokens": experiment.longest_response}


def _template(experiment: Experiment) -> dict[str, str] | str:
    """Prompt templates with and without input, or `chat` for the tokenizer's chat template."""
    template = experiment.settings["data"]["template"]
    named = schema.load_schema()["properties"]["data"]["properties"]["template"]["x-templates"]
    return named.get(template, template) if isinstance(template, str) else template
