"""Every key of an experiment file changes something: the settings of a stage, or what is made at all."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from takd.experiment import specs
from takd.experiment.experiment import Experiment, load
from takd.experiment.schema import follow, load_schema
from takd.runtime.errors import InputError

SOURCE = Path(__file__).resolve().parents[1] / "src/takd"
REVISION, DIGEST = "15ea56dee5df4983c59b2538573817e1667135e2", "a" * 64
SCRATCH = {"layers": 3, "width": 32, "heads": 4, "positions": 256}
PINNED = {"hub": "some/thing", "revision": REVISION}
GIVEN = {**PINNED, "vocabulary": 300}
TEMPLATE = {"with_input": "{instruction}{input}", "without_input": "{instruction}"}
REGIMES = {
    "gkd": "mixed",
    "distillm": "adaptive",
    "abkd": "adaptive",
    "taid": "adaptive",
    "amid": "adaptive",
    "skd": "adaptive",
}
ADAPTIVE = ("initial_share", "share_step", "loss_rise", "capacity")
UNTIL = ("difference", "at_most", "at_least", "measure", "questions", "sets")
METHODS = ["kd", "seqkd", "gkd", "distillm", "abkd", "taid", "amid", "skd", "minillm"]

# a place for every key: one of each kind of weights and sources, methods as they read most of their settings
WHOLE: dict[str, Any] = {
    "title": "t",
    "tokenizer": {"train": {"vocabulary": 300}},
    "models": {
        "scratch": {"weights": {"scratch": SCRATCH}},
        "hub": {"parameters": "9M", "weights": {**PINNED, "keep_layers": 2}},
        "folder": {"parameters": 8e6, "weights": {"folder": "models/any"}},
        "gguf": {"parameters": 7e6, "weights": {"gguf": "models/any.gguf"}},
        "low": {"parameters": "5M", "weights": PINNED, "training": {"kd": {"ratio": 0.4}}},
    },
    "data": {
        "train": {"json": "data/train.jsonl"},
        "dev": {"demo": {"part": "dev", "rows": 10}},
        "corpus": {"text": "data/corpus", "blocks": 9},
        "max_length": 64,
        "max_prompt_length": 48,
    },
    "chains": [
        {"models": ["hub", "folder", "gguf"], "methods": ["kd"]},
        {"models": ["hub", "low"], "methods": METHODS, "label": "short"},
    ],
    "training": {
        "sft": {"steps": 10},
        **{name: {"steps": 10, "responses": "teacher"} for name in METHODS[:-1]},
        "minillm": {"steps": 10, "lm_teacher_outputs": "top_k"},
    },
    "evaluation": {
        "sets": {
            "json": {"json": "data/test.jsonl"},
            "url": {"url": "https://x.org/a.jsonl", "sha256": DIGEST},
            "hub": PINNED,
            "file": {**PINNED, "file": "a.jsonl"},
            "folder": {"folder": "data/saved"},
            "demo": {"demo": {"part": "test", "rows": 10}},
        },
        "seeds": [10, 20],
        "judge": {"endpoint": "https://x.org/v1", "model": "m"},
    },
    "report": {"targets": [{"source": "a paper", "scores": {"hub-sft": {"json": 27.6}}}]},
}  # fmt: skip
for _name, _regime in REGIMES.items():
    WHOLE["training"][_name]["on_policy"] = _regime

# the experiment around a key that excludes what stands in WHOLE: value of a part by its place
INSTEAD: dict[str, dict[str, Any]] = {
    **{f"tokenizer.{key}": {"tokenizer": GIVEN} for key in ("hub", "revision", "vocabulary")},
    "tokenizer.folder": {"tokenizer": {"folder": "models/any", "vocabulary": 300}},
    "tokenizer.gguf": {"tokenizer": {"gguf": "models/any.gguf", "vocabulary": 300}},
    "tokenizer.words": {"tokenizer": {"words": ["a", "b"]}, "teacher_cache.top_k": 2},
    "models.NAME.trained": {"chains": [{"models": ["folder"]}, *WHOLE["chains"][1:]]},
    "data.corpus.json": {"data.corpus": {"json": "data/corpus.jsonl"}},
    "data.corpus.hub": {"data.corpus": PINNED},
    "data.corpus.revision": {"data.corpus": PINNED},
    "data.corpus.config": {"data.corpus": PINNED},
    "data.corpus.split": {"data.corpus": PINNED},
    "data.corpus.folder": {"data.corpus": {"folder": "data/saved"}},
    "data.template.with_input": {"data.template": TEMPLATE},
    "data.template.without_input": {"data.template": TEMPLATE},
    "data.system": {"tokenizer": GIVEN, "data.template": "chat"},
    "data.template_variables.NAME": {
        "tokenizer": GIVEN,
        "data.template": "chat",
        "data.template_variables": {"a": 1},
    },
    "evaluation.sets.NAME.answer.pattern": {
        "evaluation.sets.json": {"json": "data/test.jsonl", "answer": {"pattern": "(a)"}}
    },
    **{f"training.gkd.{key}": {"training.gkd.on_policy": "adaptive"} for key in ADAPTIVE},
    "training.distillm.on_policy_share": {"training.distillm.on_policy": "mixed"},
    **{
        f"training.{name}.on_policy_share": {f"training.{name}.on_policy": "mixed"}
        for name in ("abkd", "taid", "amid", "skd")
    },
    "budget.chain": {"chains": [{**WHOLE["chains"][0], "label": "other"}, *WHOLE["chains"][1:]]},
    **{
        f"training.{name}.teacher_prompts": {f"training.{name}.responses": "labels"}
        for name in ("kd", *REGIMES)
    },
    "chains[].control": {"chains": [{"models": ["hub", "low"], "methods": ["minillm"]}]},
    "evaluation.decoding.sample": {"evaluation.seeds": [10]},
    "evaluation.exact": {
        "tokenizer": {"words": ["a", "b"]},
        "teacher_cache.top_k": 2,
        "data.max_length": 10,
        "data.max_prompt_length": 6,
    },
    **{
        f"seeds.{key}": {"seeds": {"until": {"difference": 1.0, "at_most": 5}}}
        for key in ("values", *(f"until.{name}" for name in UNTIL))
    },
    "variables.NAME": {"variables": {"at": "data"}, "data.train": {"json": "{at}/train.jsonl"}},
}
# what only the report and the cards show
SHOWN = ("title", "license", "description", "chains[].label", "report.")
# a family of models so far has no other; trackers read the logs of stages, and no stage knows of them
ONLY = {"models.NAME.weights.scratch.architecture", "report.trackers"}


def leaves(schema: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key below which there are no others, with what the schema says of it."""
    schema = follow(schema)
    children = dict(schema.get("properties", {}))
    if isinstance(schema.get("additionalProperties"), dict):
        children["NAME"] = schema["additionalProperties"]
    items = schema.get("items", {})
    if "properties" in items:
        yield from leaves(items, (*above[:-1], f"{above[-1]}[]"))
    elif not children:
        yield above, schema
    for name, child in children.items():
        # the same keys as those of `training` and of `evaluation.sets`
        if (*above, name) not in (
            ("models", "NAME", "training"),
            ("data", "train"),
            ("data", "dev"),
        ):
            yield from leaves(child, (*above, name))


def all_specs(e: Experiment, shown: bool) -> str:
    """Settings of all stages; those of the report only where asked for, as it is told of all settings."""
    found = [specs.tokenizer(e), specs.data_report(e), e.teacher_cache]
    found += [specs.data(e, split) for split in e.splits]
    found += [specs.base(e, model) for model in e.settings["models"]]
    found += [specs.made_with(e, node) for node in e.nodes]
    sets, nodes = list(e.sets), list(e.nodes)
    # a set of each kind for one model, and each model on one set
    for node, name in [*((nodes[-1], name) for name in sets), *((node, sets[0]) for node in nodes)]:
        found += [make(e, *node, name) for make in (specs.evaluate, specs.likelihoods, specs.judge)]
    for teacher, seed, place, parts in e.teacher_cache:
        if parts:
            found.append(specs.generate(e, teacher, seed, 1, parts))
        else:
            found.append(specs.outputs(e, teacher, seed, *place.split("/")[1:]))
    found += [specs.look(e, count) for count in e.looks]
    if shown:
        found += [specs.report(e), specs.card(e, *e.nodes[0])]
    return json.dumps(found)


def read(content: Any, folder: Path) -> Experiment:
    path = folder / "any.yaml"
    path.write_text(json.dumps(content))
    return load(path, folder, {})


def others(part: dict[str, Any], now: Any) -> Iterator[Any]:
    """Values of a key that may be right and differ from the one that it has."""
    types = part["type"] if isinstance(part["type"], list) else [part["type"]]
    values: list[Any] = part.get("enum", [])
    if "boolean" in types:
        values = [True, False]
    if "integer" in types or "number" in types:
        near = now if isinstance(now, int | float) and now is not True else 1
        values = [near + 1, near * 2, near / 2, 0.7]
    if "string" in types and not values:
        texts = ("other", "zero1", "9M", REVISION[::-1], DIGEST[::-1], "https://y.org/a", "b.jsonl")
        values = [*texts, "{instruction}?", "{instruction}{input}?", "(b)"]
    if "array" in types:
        values += [
            [0.5, 0.6],
            [7],
            [2, 5],
            ["c_attn"],
            ["facts"],
            ["sft"],
            ["json"],
            [4, 5, 6, 7, 8],
            [["kd"]],
            ["kd"],
            ["hub", "folder"],
            [20],
        ]
    if "object" in types:
        values += [{}]
    yield from (value for value in values if value != now)


def addresses(content: Any, path: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Where a key stands, or may stand, in an experiment."""
    name, *rest = path
    if name.endswith("[]"):
        found: Any = [(name[:-2], at) for at in range(len(content.get(name[:-2], [])))]
    else:
        found = [(key,) for key in content] if name == "NAME" else [(name,)]
    for address in found:
        inner = content
        for key in address:
            inner = inner.get(key, {}) if isinstance(inner, dict) else inner[key]
        if not rest:
            yield address
        elif isinstance(inner, dict):
            yield from ((*address, *more) for more in addresses(inner, tuple(rest)))


def changed(content: Any, address: Sequence[Any], value: Any) -> Any:
    """The experiment with another value there."""
    content = inner = json.loads(json.dumps(content))
    *above, last = address
    for key in above:
        inner = inner.setdefault(key, {}) if isinstance(inner, dict) else inner[key]
    inner[last] = value
    return content


def value_at(content: Any, address: Sequence[Any]) -> Any:
    for key in address:
        content = content.get(key) if isinstance(content, dict) else content[key]
        if content is None:
            return None
    return content


@pytest.mark.slow
def test_every_key_changes_something(tmp_path: Path) -> None:
    (tmp_path / "config/deepspeed").mkdir(parents=True)
    (tmp_path / "config/deepspeed/zero1.json").write_text('{"zero_optimization": {"stage": 1}}')
    whole = {shown: all_specs(read(WHOLE, tmp_path), shown) for shown in (True, False)}
    idle = {}
    for path, part in leaves(load_schema()):
        key = ".".join(path)
        content, shown = WHOLE, key.startswith(SHOWN)
        expected = whole[shown]
        if key in INSTEAD:
            for place, value in INSTEAD[key].items():
                content = changed(content, place.split("."), value)
            expected = all_specs(read(content, tmp_path), shown)
        refused = []
        for address in addresses(content, path):
            for value in others(part, value_at(content, address) or part.get("default")):
                try:
                    found = all_specs(read(changed(content, address, value), tmp_path), shown)
                except InputError as error:
                    refused.append(str(error))
                else:
                    if found != expected:
                        break
            else:
                continue
            break
        else:
            idle[key] = refused
    assert set(idle) == ONLY, idle


def test_every_setting_of_a_method_is_read_by_code() -> None:
    """Trainings are told all settings of their method, so that a spec alone says little."""
    code = "".join(
        file.read_text(encoding="utf-8")
        for folder in ("methods", "training", "teacher_cache")
        for file in (SOURCE / folder).glob("*.py")
    )
    code += "".join(
        (SOURCE / name).read_text()
        for name in ("experiment/specs.py", "models/lora.py", "experiment/teacher_cache.py")
    )
    methods = load_schema()["$defs"]["methods"]["properties"]
    for method, part in methods.items():
        for path, _ in leaves(part):
            assert f'"{path[-1]}"' in code, (method, path)
