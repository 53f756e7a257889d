"""The experiment file: what it means, what is refused and how, and that schema and documentation agree."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import experiment_tables
import pytest
from jsonschema import Draft202012Validator

from takd.experiment import comparison, looks, specs
from takd.experiment.experiment import Experiment, load
from takd.experiment.lineage import Node, is_given
from takd.experiment.schema import follow, load_schema
from takd.experiment.validation.models import gpt2_parameters
from takd.runtime.digests import canonical_json, file_digest, without_places
from takd.runtime.errors import InputError
from takd.runtime.files import write_json
from takd.runtime.records import sealed

ROOT = Path(__file__).resolve().parents[1]
REVISION = "15ea56dee5df4983c59b2538573817e1667135e2"

GOOD = """\
tokenizer: {train: {vocabulary: 300}}
models:
  teacher:
    weights: {scratch: {layers: 3, width: 32, heads: 4, positions: 64}}
  assistant:
    weights: {scratch: {layers: 2, width: 32, heads: 4, positions: 64}}
    training: {minillm: {batch_size: 32}}
  student:
    weights: {scratch: {layers: 1, width: 32, heads: 4, positions: 64}}
  hub.model:
    parameters: 1.5M
    weights: {hub: some/model, revision: 15ea56dee5df4983c59b2538573817e1667135e2}
data:
  train: {json: data/train.jsonl}
  dev: {demo: {part: dev, rows: 10}}
  max_length: 64
  max_prompt_length: 48
chains:
  - {models: [teacher, student], methods: [kd, minillm], label: direct}
  - {models: [teacher, assistant, student], methods: [minillm, [kd, minillm]]}
seeds: [1, 2]
training:
  sft: {steps: 10}
  kd: {epochs: 2}
  minillm: {steps: 20, learning_rate: 5e-5}
evaluation:
  sets:
    heldout: {demo: {part: test, rows: 10}}
  seeds: [10, 20]
report:
  targets:
    - {source: a paper, scores: {teacher-sft: {heldout: 27.6}}}
"""


def write(folder: Path, text: str = GOOD, name: str = "mine") -> Path:
    """A repository with nothing but this experiment in it."""
    path = folder / f"config/experiments/{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data/train.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (folder / "config/deepspeed").mkdir(exist_ok=True)
    (folder / "config/deepspeed/zero1.json").write_text('{"zero_optimization": {"stage": 1}}')
    (folder / "config/deepspeed/broken.json").write_text("{")
    (folder / "config/deepspeed/list.json").write_text("[]")
    (folder / "config/deepspeed/plain.json").write_text('{"bf16": {"enabled": true}}')
    (folder / "config/deepspeed/zero0.json").write_text('{"zero_optimization": {"stage": 0}}')
    blind = '{"zero_optimization": {"stage": 2, "compute_grad_norm": false}}'
    (folder / "config/deepspeed/blind.json").write_text(blind)
    return path


def read(folder: Path, text: str = GOOD, **variables: str) -> Experiment:
    return load(write(folder, text), folder, variables)


def edit(old: str, new: str, text: str = GOOD) -> str:
    assert text.count(old) >= 1, old
    return text.replace(old, new, 1)


def taught_by(method: str, settings: str) -> tuple[str, str]:
    """The text that has to be replaced for a further method in the first chain, and what replaces it."""
    old = GOOD[GOOD.index("chains:") : GOOD.index("evaluation:")]
    new = edit("[kd, minillm], label", f"[kd, minillm, {method}], label", old)
    more = f"  {method}: {{steps: 2, {settings}}}"
    return old, edit("  kd: {epochs: 2}", f"  kd: {{epochs: 2}}\n{more}", new)


# what is wrong: the text that is replaced, what replaces it, and what the message must hold
BAD: dict[str, tuple[str, str, list[str]]] = {
    "unknown key": ("seeds: [1, 2]", "sedes: [1, 2]", ["line 21: sedes", "did you mean 'seeds'"]),
    "unknown key in a chain": (
        ", methods: [kd, minillm], label",
        ", method: [kd], methods: [kd], label",
        ["chains[0].method ", "did you mean 'methods'"],
    ),
    "unknown setting": (
        "steps: 20",
        "teacher_mixture: 0.2, steps: 20",
        ["line 25: training.minillm.teacher_mixture", "did you mean 'teacher_mix'"],
    ),
    "setting of another method": (
        "sft: {steps: 10}",
        "sft: {steps: 10, teacher_mix: 0.1}",
        ["training.sft.teacher_mix", "not a known key", "dropout"],
    ),
    "unknown model": (
        "[teacher, student]",
        "[teacher, studnet]",
        ["line 19: chains[0].models[1] is 'studnet'", "did you mean 'student'"],
    ),
    "chain of one model": (
        "[teacher, student]",
        "[teacher]",
        ["chains[0].methods is given, but the chain has one model, 'teacher'", "remove it"],
    ),
    "chain that grows": (
        "[teacher, student]",
        "[student, assistant]",
        ["chains[0].models[1] is 'assistant' (", "larger than its teacher 'student'", "must fall"],
    ),
    "model twice in a chain": (
        "[teacher, assistant, student]",
        "[teacher, assistant, assistant]",
        ["chains[1].models[2] is 'assistant'", "once"],
    ),
    "model name that is a number": (
        "[teacher, student]",
        "[teacher, 120]",
        ["chains[0].models[1] is 120", "name of a model; put it in quotes"],
    ),
    "no chains": (
        GOOD[GOOD.index("chains:") : GOOD.index("seeds:")],
        "chains: []\n",
        ["line 18: chains has 0 entries", "a list of 1 or more"],
    ),
    "key twice": (
        "kd: {epochs: 2}",
        "kd: {epochs: 2}\n  kd: {epochs: 3}",
        ["line 25: training.kd stands twice", "first in line 24"],
    ),
    "model twice": (
        "  student:\n",
        "  teacher:\n",
        ["line 8: models.teacher stands twice", "first in line 3"],
    ),
    "chain twice": (
        "[minillm, [kd, minillm]]}",
        "[minillm]}\n  - {models: [teacher, student], methods: [kd]}",
        ["chains[2].methods[0] gives teacher-sft__student-kd again", "chains[0].methods[0]"],
    ),
    "the same methods, once as a list": (
        "[minillm, [kd, minillm]]",
        "[minillm, [minillm, minillm]]",
        ["chains[1].methods[1] gives", "again", "chains[1].methods[0]"],
    ),
    "label twice": (
        "[kd, minillm]]}",
        "[kd, minillm]], label: direct}",
        ["chains[1].label is 'direct'", "chains[0]"],
    ),
    "label that is a number": (
        "label: direct",
        "label: 2.0",
        ["chains[0].label is 2.0", "a text", "quotes"],
    ),
    "training seeds repeat": ("[1, 2]", "[1, 2, 1]", ["line 21: seeds holds 1 twice", "once"]),
    "no more seeds than before the first look": (
        "seeds: [1, 2]",
        "seeds: {until: {difference: 1.0, at_most: 3}}",
        ["line 21: seeds.until.at_most is 3", "greater than at_least, which is 3"],
    ),
    "fewer values than seeds": (
        "seeds: [1, 2]",
        "seeds: {values: [1, 2, 3, 4], until: {difference: 1.0, at_most: 5}}",
        ["seeds.values has 4 entries", "until.at_most is 5"],
    ),
    "seeds until a set is decided that is not there": (
        "seeds: [1, 2]",
        "seeds: {until: {difference: 1.0, at_most: 5, sets: [other]}}",
        ["seeds.until.sets[0]", "not an evaluation set"],
    ),
    "seeds until answers are decided that no set has": (
        "seeds: [1, 2]",
        "seeds: {until: {difference: 1.0, at_most: 5, measure: answer_accuracy}}",
        ["seeds.until.measure is answer_accuracy", "answer.pattern"],
    ),
    "seeds until nothing": ("seeds: [1, 2]", "seeds: {values: [1, 2, 3]}", ["lacks the key until"]),
    "no difference to decide": (
        "seeds: [1, 2]",
        "seeds: {until: {difference: 0, at_most: 5}}",
        ["seeds.until.difference is 0", "greater than 0"],
    ),
    "decoding seeds repeat": (
        "seeds: [10, 20]",
        "seeds: [10, 10]",
        ["line 29: evaluation.seeds holds 10 twice"],
    ),
    "unknown method": (
        "methods: [kd, minillm], label",
        "methods: [minilm], label",
        ["chains[0].methods[0] is 'minilm'", "did you mean 'minillm'", "there are: kd, "],
    ),
    "sft as distillation": (
        "methods: [kd, minillm], label",
        "methods: [sft], label",
        [
            "chains[0].methods[0] is 'sft'",
            "must be one of kd, seqkd, gkd, distillm, abkd, taid, amid, skd, minillm",
        ],
    ),
    "too few methods for the hops": (
        "[kd, minillm]]",
        "[kd]]",
        [
            "chains[1].methods[1] has 1 entry for 2 hops (teacher → assistant → student)",
            "list of 2",
        ],
    ),
    "method without settings": (
        "  kd: {epochs: 2}\n",
        "",
        ["line 22: training lacks the key kd", "chains[0].methods[0]", "steps, epochs or both"],
    ),
    "teacher without settings": ("  sft: {steps: 10}\n", "", ["training lacks the key sft"]),
    "settings that are empty": (
        "kd: {epochs: 2}",
        "kd:",
        ["line 24: training.kd is empty, but must be a mapping"],
    ),
    "neither steps nor epochs": (
        "kd: {epochs: 2}",
        "kd: {learning_rate: 0.1}",
        ["training.kd gives neither steps nor epochs for the model 'student'", "one or both"],
    ),
    "setting of another regime": (
        *taught_by("gkd", "on_policy: adaptive, on_policy_share: 0.9"),
        ["training.gkd.on_policy_share has no effect where on_policy is adaptive", "it is mixed;"],
    ),
    "temperature of what is not drawn": (
        *taught_by("abkd", "temperature: 0.9"),
        ["training.abkd.temperature has no effect where on_policy is off", "mixed or adaptive"],
    ),
    "buffer smaller than a batch": (
        *taught_by("distillm", "batch_size: 64, capacity: 63"),
        ["training.distillm.capacity is 63, but must be at least the batch_size (64)"],
    ),
    "no divergence": (
        *taught_by("abkd", "alpha: 0, beta: 0"),
        ["training.abkd.alpha is 0 as beta is; one of the two must be greater than 0"],
    ),
    "skew of one": (
        *taught_by("distillm", "skew: 1"),
        ["training.distillm.skew is 1, but must be less than 1"],
    ),
    "batch that does not divide the rollouts": (
        "steps: 20",
        "batch_size: 48, steps: 20",
        ["line 25: training.minillm.batch_size is 48", "256 rollouts", "32, 64, 128, 256"],
    ),
    "batch of one model that does not divide": (
        "{batch_size: 32}",
        "{batch_size: 100}",
        ["line 7: models.assistant.training.minillm.batch_size is 100", "'assistant'"],
    ),
    "model without weights": (
        "    weights: {scratch: {layers: 1, width: 32, heads: 4, positions: 64}}\n",
        "    training: {}\n",
        ["models.student lacks the key weights", "scratch, hub, folder, gguf"],
    ),
    "two sources of weights": (
        "{scratch: {layers: 1,",
        "{folder: x, scratch: {layers: 1,",
        ["models.student.weights must have exactly one of", "but has scratch and folder"],
    ),
    "no source of data": (
        "{json: data/train.jsonl}",
        "{}",
        ["data.train must have exactly one of json, url, hub, folder, demo", "none"],
    ),
    "address without digest": (
        "{json: data/train.jsonl}",
        '{url: "https://host/rows.jsonl"}',
        ["line 14: data.train has url but lacks sha256", "a sha256 of 64 hexadecimal digits"],
    ),
    "address that is no secure one": (
        "{json: data/train.jsonl}",
        f'{{url: "http://host/rows.jsonl", sha256: "{"0" * 64}"}}',
        ["data.train.url is 'http://host/rows.jsonl'", "begins with https:// or file:///"],
    ),
    "address with a password": (
        "{json: data/train.jsonl}",
        f'{{url: "https://me:secret@host/rows.jsonl", sha256: "{"0" * 64}"}}',
        ["data.train.url is", "without a name or password"],
    ),
    "file of a hub data set with a split": (
        "{json: data/train.jsonl}",
        f"{{hub: some/data, revision: {REVISION}, file: raw.jsonl, split: train}}",
        ["data.train.split does not go with file, which is read whole"],
    ),
    "file that is not JSON lines": (
        "{json: data/train.jsonl}",
        f"{{hub: some/data, revision: {REVISION}, file: raw.parquet}}",
        ["data.train.file is 'raw.parquet'", "path of a .jsonl file within the data set"],
    ),
    "digest of a folder": (
        "{json: data/train.jsonl}",
        f'{{folder: data, sha256: "{"0" * 64}"}}',
        ["data.train.sha256 only goes with json, url and file of a hub data set", "rows_sha256"],
    ),
    "lengths that nothing has": (
        "{json: data/train.jsonl}",
        "{json: data/train.jsonl, min_response_words: 11, max_response_words: 10}",
        ["data.train.max_response_words is 10, but must be at least min_response_words (11)"],
    ),
    "no rows": (
        "{json: data/train.jsonl}",
        "{json: data/train.jsonl, rows: [10, 10]}",
        ["data.train.rows is [10, 10], but must be the first row and a later one"],
    ),
    "one row": (
        "{json: data/train.jsonl}",
        "{json: data/train.jsonl, rows: [10]}",
        ["data.train.rows has 1 entry", "such as [0, 1000]"],
    ),
    "rows of the demo": (
        "{demo: {part: dev, rows: 10}}",
        "{demo: {part: dev, rows: 10}, rows: [0, 5]}",
        ["line 15: data.dev.rows does not go with demo"],
    ),
    "column of another name": (
        "{json: data/train.jsonl}",
        "{json: data/train.jsonl, columns: {prompt: question}}",
        ["data.train.columns.prompt is not a known key", "instruction, input, output"],
    ),
    "layers kept of what starts from scratch": (
        "{scratch: {layers: 1,",
        "{keep_layers: 1, scratch: {layers: 1,",
        [
            "models.student.weights.keep_layers only goes with hub, folder and gguf",
            "scratch.layers",
        ],
    ),
    "layers in another order": (
        "{hub: some/model,",
        "{keep_layers: [0, 4, 2], hub: some/model,",
        ["hub.model.weights.keep_layers is [0, 4, 2], but must rise", "[0, 2, 4]"],
    ),
    "no layers": (
        "{hub: some/model,",
        "{keep_layers: [], hub: some/model,",
        ["hub.model.weights.keep_layers has 0 entries", "a number of layers, or a list of layers"],
    ),
    "no parameters": ("    parameters: 1.5M\n", "", ["models.hub.model lacks the key parameters"]),
    "parameters of a model from scratch": (
        "  student:\n",
        "  student:\n    parameters: 1M\n",
        ["line 9: models.student.parameters is computed", "remove"],
    ),
    "strange parameters": ("1.5M", "1.5 M", ["hub.model.parameters is '1.5 M'", "1.5B or 120M"]),
    "weights without revision": (
        ", revision: 15ea56dee5df4983c59b2538573817e1667135e2",
        "",
        ["hub.model.weights has hub but lacks revision", "40 hexadecimal digits"],
    ),
    "data without revision": (
        "{json: data/train.jsonl}",
        "{hub: some/data}",
        ["line 14: data.train has hub but lacks revision", "40 hexadecimal digits"],
    ),
    "data of a branch": (
        "{json: data/train.jsonl}",
        "{hub: some/data, revision: main, file: raw.jsonl, expect_rows: 3}",
        [
            "line 14: data.train.revision is 'main', which may name another commit tomorrow",
            "a commit of 40 hexadecimal digits, or have beside it the digest",
            "sha256 (of a file) or rows_sha256",
        ],
    ),
    "short commit": (
        "{json: data/train.jsonl}",
        "{hub: some/data, revision: ad9edcc}",
        ["data.train.revision is 'ad9edcc'", "a commit of 40 hexadecimal digits"],
    ),
    "revision that moves": (
        "15ea56dee5df4983c59b2538573817e1667135e2",
        "main",
        ["hub.model.weights.revision is 'main'", "a branch such as main moves"],
    ),
    "model name with a hyphen": (
        "  hub.model:",
        "  hub-model:",
        ["line 10: models.hub-model is no valid name", "letters, digits and dots"],
    ),
    "reserved set name": (
        "    heldout: {",
        "    dev: {demo: {part: dev, rows: 1}}\n    heldout: {",
        ["line 28: evaluation.sets.dev is no valid name", "none of train, dev"],
    ),
    "set name that is a path": (
        "    heldout: {",
        "    a/b: {",
        ["evaluation.sets.a/b is no valid name"],
    ),
    "prompt as long as all": (
        "max_prompt_length: 48",
        "max_prompt_length: 64",
        ["line 17: data.max_prompt_length is 64", "less than data.max_length (64)"],
    ),
    "teacher mix of one": (
        "steps: 20",
        "teacher_mix: 1, steps: 20",
        ["training.minillm.teacher_mix is 1, but must be less than 1"],
    ),
    "no token of the teacher": (
        *taught_by("skd", "teacher_top_k: 0"),
        ["training.skd.teacher_top_k is 0, but must be at least 1"],
    ),
    "a top k without responses": (
        *taught_by("skd", "on_policy: off, teacher_top_k: 5"),
        ["training.skd.teacher_top_k has no effect where on_policy is off", "mixed or adaptive"],
    ),
    "negative teacher mix": ("steps: 20", "teacher_mix: -0.1, steps: 20", ["-0.1", "at least 0"]),
    "learning rate of zero": (
        "learning_rate: 5e-5",
        "learning_rate: 0",
        ["training.minillm.learning_rate is 0, but must be greater than 0"],
    ),
    "learning rate in quotes": (
        "learning_rate: 5e-5",
        'learning_rate: "5e-5"',
        ["learning_rate is '5e-5', but must be a number; write it without quotes"],
    ),
    "learning rate that is infinite": ("5e-5", ".inf", ["learning_rate is .inf", "finite"]),
    "steps that are no whole number": (
        "steps: 10",
        "steps: 10.5",
        ["training.sft.steps is 10.5, but must be a whole number or null"],
    ),
    "true as a number": ("steps: 10", "steps: true", ["training.sft.steps is true", "whole"]),
    "three betas": (
        "steps: 20",
        "betas: [0.9, 0.95, 1], steps: 20",
        ["training.minillm.betas has 3 entries", "a list of 2"],
    ),
    "unknown choice": (
        "steps: 20",
        "schedule: cosin, steps: 20",
        [
            "training.minillm.schedule is 'cosin'",
            "one of cosine, linear, constant; did you mean 'cosine'",
        ],
    ),
    "heads that do not divide": (
        "layers: 1, width: 32, heads: 4",
        "layers: 1, width: 32, heads: 3",
        ["line 9: models.student.weights.scratch.heads is 3", "width 32", "1, 2, 4, 8, 16, 32"],
    ),
    "too few positions": (
        "layers: 1, width: 32, heads: 4, positions: 64",
        "layers: 1, width: 32, heads: 4, positions: 63",
        ["models.student.weights.scratch.positions is 63", "at least data.max_length (64)"],
    ),
    "scratch without a vocabulary": (
        "{train: {vocabulary: 300}}",
        "{folder: some/tokenizer}",
        ["line 1: tokenizer lacks the key vocabulary", "'teacher'"],
    ),
    "target of an unknown lineage": (
        "{teacher-sft: {",
        "{teacher-stf: {",
        ["report.targets[0].scores.teacher-stf", "did you mean 'teacher-sft'"],
    ),
    "target for an unknown set": (
        "{heldout: 27.6}",
        "{held-out: 27.6}",
        ["targets[0].scores.teacher-sft.held-out", "did you mean 'heldout'"],
    ),
    "unknown deepspeed": (
        "steps: 20",
        "deepspeed: zero9, steps: 20",
        ["training.minillm.deepspeed is 'zero9'", "config/deepspeed", "did you mean 'zero"],
    ),
    "lora on random weights": (
        "steps: 10",
        "steps: 10, lora: {}",
        ["training.sft.lora is set", "starts from random weights", "start from sft"],
    ),
    "lora of too high a rank": (
        "steps: 20",
        "lora: {rank: 99}, steps: 20",
        ["training.minillm.lora.rank is 99, but must be at most the width of the model, "],
    ),
    "lora with a layer's name by itself": (
        "steps: 20",
        "lora: {targets: c_attn}, steps: 20",
        ["training.minillm.lora.targets is 'c_attn', but must be a list or null"],
    ),
    "broken deepspeed": ("steps: 20", "deepspeed: broken, steps: 20", ["broken.json is not JSON"]),
    **{
        f"deepspeed without ZeRO, {name}": (
            "steps: 20",
            f"deepspeed: {name}, steps: 20",
            [f"is '{name}', but zero_optimization.stage in", "is 0; write 1, 2 or 3, or leave"],
        )
        for name in ("list", "plain", "zero0")
    },
    "deepspeed that reports no gradient norm": (
        "steps: 20",
        "deepspeed: blind, steps: 20",
        ["blind.json sets zero_optimization.compute_grad_norm; remove that key"],
    ),
    "language modelling without a corpus": (
        "steps: 20",
        "lm_weight: 0.5, steps: 20",
        ["training.minillm.lm_weight is 0.5", "without data.corpus"],
    ),
    "greedy with several seeds": (
        "  seeds: [10, 20]\n",
        "  seeds: [10, 20]\n  decoding: {sample: false}\n",
        ["evaluation.seeds has 2 entries", "greedy", "[10]"],
    ),
    "two sources of a corpus": (
        "  max_length: 64",
        "  corpus: {text: a, json: b}\n  max_length: 64",
        ["data.corpus must have exactly one of text, json, hub, folder", "has text and json"],
    ),
    "blocks that no model reads": (
        "  max_length: 64",
        "  corpus: {text: a, block_length: 65}\n  max_length: 64",
        ["data.corpus.block_length is 65, but must be at most data.max_length (64)"],
    ),
    "no block of a corpus": (
        "  max_length: 64",
        "  corpus: {text: a, blocks: 0}\n  max_length: 64",
        ["data.corpus.blocks is 0, but must be at least 1"],
    ),
    "shards of responses that nobody asks for": (
        "seeds: [1, 2]",
        "seeds: [1, 2]\nteacher_cache: {shards: 2}",
        ["line 22: teacher_cache.shards is 2", "no method of a chain has responses: teacher"],
    ),
    "the teacher cache by its former name": (
        "seeds: [1, 2]",
        "seeds: [1, 2]\nteacher_writes: {shards: 2}",
        ["line 22: teacher_writes is not a known key; it is called teacher_cache."],
    ),
    "likeliest tokens that nobody asks for": (
        "seeds: [1, 2]",
        "seeds: [1, 2]\nteacher_cache: {top_k: 2}",
        ["teacher_cache.top_k is 2", "lm_teacher_outputs: top_k or teacher_outputs: top_k"],
    ),
    "more likeliest tokens than tokens": (
        "training:\n  sft: {steps: 10}\n  kd: {epochs: 2}",
        "teacher_cache: {top_k: 300}\ntraining:\n  sft: {steps: 10}\n  kd: {epochs: 2, teacher_outputs: top_k}",
        ["teacher_cache.top_k is 300, but must be less than the 300 tokens of the tokenizer"],
    ),
    "split of a file": (
        "{json: data/train.jsonl}",
        "{json: data/train.jsonl, split: train}",
        ["data.train.split only goes with hub and folder"],
    ),
    "template without input": (
        "  max_length: 64",
        "  template: {with_input: '{instruction}', without_input: '{instruction}'}\n  max_length: 64",
        ["data.template.with_input is '{instruction}'", "{instruction} and {input}"],
    ),
    "unknown template": (
        "  max_length: 64",
        "  template: alpacca\n  max_length: 64",
        ["data.template is 'alpacca'", "alpaca, chat, or a mapping"],
    ),
    "chat template of a tokenizer without one": (
        "  max_length: 64",
        "  template: chat\n  max_length: 64",
        ["data.template is chat, but a tokenizer that is made here has no chat template"],
    ),
    "system prompt without a chat template": (
        "  max_length: 64",
        "  system: Be brief.\n  max_length: 64",
        ["data.system only goes with `template: chat`"],
    ),
    "template variables without a chat template": (
        "  max_length: 64",
        "  template_variables: {a: 1}\n  max_length: 64",
        ["data.template_variables only goes with `template: chat`"],
    ),
    "a variable that the template always has": (
        "  max_length: 64",
        "  template_variables: {messages: a}\n  max_length: 64",
        ["data.template_variables.messages is no valid name"],
    ),
    "an answer of the training rows": (
        "{json: data/train.jsonl}",
        "{json: data/train.jsonl, answer: {pattern: '(a)'}}",
        ["data.train.answer only goes with evaluation sets"],
    ),
    "a pattern with two groups": (
        "{demo: {part: test, rows: 10}}",
        "{json: data/test.jsonl, answer: {pattern: '(a)(b)'}}",
        ["answer.pattern has 2 groups, but it must have one"],
    ),
    "a pattern that is none": (
        "{demo: {part: test, rows: 10}}",
        "{json: data/test.jsonl, answer: {pattern: '(a'}}",
        ["answer.pattern is no regular expression"],
    ),
    "an evaluation set without answers": (
        "{demo: {part: test, rows: 10}}",
        "{json: data/test.jsonl, columns: {output: null}}",
        ["columns.output is empty, but only rows of data.train may lack answers"],
    ),
    "messages and an instruction": (
        "{json: data/train.jsonl}",
        "{json: data/train.jsonl, columns: {messages: a, instruction: b}}",
        ["columns.instruction does not go with messages"],
    ),
    "sums among others": (
        "{json: data/train.jsonl}",
        "{demo: {part: train, rows: 9, topics: [sums, facts]}}",
        ["data.train.demo.topics has sums and others"],
    ),
    "variable that nobody gives": (
        "data/train.jsonl",
        '"{data}/train.jsonl"',
        ["data.train.json is '{data}/train.jsonl'", "--config data="],
    ),
    "variable without a use": (
        "seeds: [1, 2]",
        "seeds: [1, 2]\nvariables: {data: x}",
        ["variables.data is in no path"],
    ),
    "hops without methods": (
        ", methods: [kd, minillm], label",
        ", label",
        ["chains[0] lacks the key methods: how each model teaches the next"],
    ),
    "random weights that are there": (
        "  hub.model:\n",
        "  new:\n    weights: {scratch: {layers: 1, width: 32, heads: 4, positions: 64}}\n"
        "    trained: true\n  hub.model:\n",
        ["models.new.trained is true, but the weights are random (weights.scratch)"],
    ),
    "a student that is there": (
        GOOD[GOOD.index("    parameters") : GOOD.index("data:")]
        + GOOD[GOOD.index("data:") : GOOD.index("student], methods")],
        f"    trained: true\n{GOOD[GOOD.index('    parameters') : GOOD.index('data:')]}"
        f"{GOOD[GOOD.index('data:') : GOOD.index('student], methods')]}hub.model, ",
        ["chains[0].models[1] is 'hub.model'", "trained: true", "at the head of a chain or alone"],
    ),
    "settings for a model that is there": (
        "weights: {hub: some/model, revision: 15ea56dee5df4983c59b2538573817e1667135e2}",
        "weights: {hub: some/model, revision: 15ea56dee5df4983c59b2538573817e1667135e2}\n"
        "    trained: true\n    training: {sft: {lora: {rank: 4}}}",
        ["models.hub.model.training has no effect", "taken as it is (trained: true)"],
    ),
    "start of a model that is there": (
        "    parameters: 1.5M",
        "    parameters: 1.5M\n    trained: true\n    start: sft",
        ["models.hub.model.start is not a known key", "it stands under"],
    ),
    "nothing to train on": (
        "  train: {json: data/train.jsonl}\n",
        "",
        ["data lacks the key train: rows to train on"],
    ),
    "nothing to choose weights by": (
        "  dev: {demo: {part: dev, rows: 10}}\n",
        "",
        ["data lacks the key dev: rows that choose which weights"],
    ),
    "tab": ("  sft: {steps: 10}", "\tsft: {steps: 10}", ["line 23: is not YAML", "not tabs"]),
    "broken YAML": ("[teacher, student]", "[teacher, student", ["line 19: is not YAML"]),
    "a list": (GOOD, "- a\n", ["mine.yaml holds a list", "mapping with the keys tokenizer"]),
    "an empty file": (GOOD, "# nothing\n", ["mine.yaml is empty", "mapping with the keys"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_key_value_and_what_is_right(case: str, tmp_path: Path) -> None:
    old, new, expected = BAD[case]
    with pytest.raises(InputError) as refusal:
        read(tmp_path, edit(old, new))
    message = str(refusal.value)
    assert message.startswith("config/experiments/mine.yaml")
    assert "\n" not in message
    for text in expected:
        assert text in message, message


GIVEN = edit("    parameters: 1.5M", "    parameters: 1.5M\n    trained: true")


def test_a_model_that_is_there_is_in_place_of_a_training_and_of_a_seed(tmp_path: Path) -> None:
    more = "  - {models: [hub.model, student], methods: [kd]}\n  - {models: [hub.model]}\nseeds: [5, 7]"
    found = read(tmp_path, edit("seeds: [1, 2]", more, GIVEN))
    given, taught = Node("hub.model-given", 0), "hub.model-given__student-kd"
    assert found.nodes[0] == given and found.nodes.count(given) == 1
    assert [node for node in found.nodes if node.lineage == taught] == [(taught, 5), (taught, 7)]
    assert "hub.model" not in found.heads and given not in found.trainings
    assert not [node for node in found.trainings if node.lineage == "hub.model-sft"]
    assert specs.train(found, taught, 7)["teacher"] == list(given)
    assert specs.likelihoods(found, taught, 7, "heldout")["teachers"]["direct"] == list(given)
    assert specs.likelihoods(found, *given, "heldout")["teachers"] == {}
    spec = specs.given(found, "hub.model")
    assert spec == {**specs.base(found, "hub.model"), **given._asdict(), "method": "given"}


def test_a_tokenizer_is_told_of_models_that_may_name_more_end_tokens(tmp_path: Path) -> None:
    """Of those that are taken as they are, unless they lie where the tokenizer does."""
    own = f"tokenizer: {{hub: some/base, revision: {REVISION}, vocabulary: 300}}"
    text = edit("tokenizer: {train: {vocabulary: 300}}", own, GIVEN)
    assert specs.tokenizer(read(tmp_path, text))["given"] == {
        "hub.model": {"hub": "some/model", "revision": REVISION}
    }
    assert "given" not in specs.tokenizer(read(tmp_path, edit("some/base", "some/model", text)))
    assert "given" not in specs.tokenizer(read(tmp_path, edit("    trained: true\n", "", text)))
    source = f"weights: {{hub: some/model, revision: {REVISION}}}"
    local = edit(source, "weights: {folder: big}", text)
    assert "given" not in specs.tokenizer(read(tmp_path, local))
    (tmp_path / "big").mkdir()
    found = []
    for said in ("{}", '{"eos_token_id": 3}'):
        (tmp_path / "big/generation_config.json").write_text(said)
        found.append(specs.tokenizer(read(tmp_path, local))["given"]["hub.model"])
    assert found[0]["folder"] == found[1]["folder"] == "big" and found[0] != found[1]


def test_a_model_alone_is_fine_tuned_with_each_seed_unless_it_teaches(tmp_path: Path) -> None:
    chains = "  - {models: [teacher]}\n  - {models: [hub.model]}\nseeds: [5, 7]"
    nodes = read(tmp_path, edit("seeds: [1, 2]", chains)).nodes
    assert [seed for name, seed in nodes if name == "hub.model-sft"] == [5, 7]
    assert [seed for name, seed in nodes if name == "teacher-sft"] == [5]


def test_an_experiment_that_only_evaluates_needs_nothing_to_train_with(tmp_path: Path) -> None:
    text = GIVEN[: GIVEN.index("chains:")].replace("tokenizer: {train: {vocabulary: 300}}", "")
    text = text.replace(
        "  train: {json: data/train.jsonl}\n  dev: {demo: {part: dev, rows: 10}}\n", ""
    )
    text += (
        f"tokenizer: {{hub: some/model, revision: {REVISION}}}\nchains: [{{models: [hub.model]}}]\n"
    )
    text += "evaluation: {sets: {heldout: {demo: {part: test, rows: 10}}}}\n"
    text = text[: text.index("  teacher:")] + text[text.index("  hub.model:") :]
    found = read(tmp_path, text)
    assert found.nodes == [Node("hub.model-given", 0)] and found.splits == ["heldout"]
    assert found.trainings == [] and list(specs.data_report(found)["splits"]) == ["heldout"]


def test_the_folder_of_a_training_is_that_of_its_model(tmp_path: Path) -> None:
    source = "weights: {hub: some/model, revision: 15ea56dee5df4983c59b2538573817e1667135e2}"
    text = edit(source, "weights: {folder: results/x/models/a-sft/seed1}", GIVEN)
    assert specs.base(read(tmp_path, text), "hub.model")["weights"]["folder"].endswith("seed1")
    model = tmp_path / "results/x/models/a-sft/seed1/model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    weights = specs.base(read(tmp_path, text), "hub.model")["weights"]
    assert weights["folder"] == "results/x/models/a-sft/seed1/model"
    assert [name for name, _ in weights["sha256"]] == ["config.json"]


def test_unknown_experiment_lists_those_that_there_are(tmp_path: Path) -> None:
    write(tmp_path, name="demo")
    write(tmp_path, name="large")
    with pytest.raises(
        InputError, match=r"no experiment 'dmo' .*did you mean 'demo'.*demo, .*large"
    ):
        load(tmp_path / "config/experiments/dmo.yaml", tmp_path)


def test_variables_fill_paths_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    text = edit("data/train.jsonl", '"{data}/train.jsonl"')
    text += "variables: {data: data}\n"
    assert specs.data(read(tmp_path, text), "train")["source"]["json"] == "data/train.jsonl"
    assert specs.data(read(tmp_path, text, data="x"), "train")["source"]["json"] == "x/train.jsonl"
    with pytest.raises(InputError, match=r"variable dta, given by --config.*did you mean 'data'"):
        read(tmp_path, text, dta="x")


def test_fewer_seeds_are_the_first_ones_and_change_no_training(tmp_path: Path) -> None:
    whole, first = read(tmp_path), read(tmp_path, seeds="1")
    assert (whole.seeds, first.seeds) == ([1, 2], [1])
    # what one seed has trained is in place when all seeds are asked for
    assert set(first.nodes) < set(whole.nodes)
    for node in first.nodes:
        assert specs.train(first, *node) == specs.train(whole, *node)
    for count in ("0", "3", "1.5", "some"):
        with pytest.raises(InputError, match=rf"seeds={count}: must be a number from 1 to 2:"):
            read(tmp_path, seeds=count)


def test_seeds_are_added_until_decisions_say_that_they_are_enough(tmp_path: Path) -> None:
    until = "seeds: {values: [7, 5, 9, 8, 6, 4], until: {difference: 1.0, at_most: 5}}"
    found = read(tmp_path, edit("seeds: [1, 2]", until))
    assert found.seeds == [7, 5, 9, 8, 6] and list(found.looks) == [3, 4]
    assert specs.report(found)["until"]["at_least"] == 3
    # the decisions are files: none, one that asks for more, one that is the last
    assert looks.asked_for(found).seeds == [7, 5, 9]
    for count, decided, seeds in ((3, False, 4), (4, False, 5), (4, True, 4), (3, True, 3)):
        write_json(
            tmp_path / looks.decision(found, count), sealed({"decided": decided, "files": {}})
        )
        assert looks.asked_for(found).seeds == found.seeds[:seeds]
    # a number of seeds is trained without looking, and with the same settings
    few = read(tmp_path, edit("seeds: [1, 2]", until), seeds="4")
    assert few.seeds == [7, 5, 9, 8] and not few.looks and looks.asked_for(few) is few
    assert specs.report(few) == specs.report(looks.first(found, 4))
    assert specs.look(found, 3)["nodes"] == specs.report(looks.first(found, 3))["nodes"]


def test_missing_files_stop_a_run_but_not_a_plan(tmp_path: Path) -> None:
    experiment = read(tmp_path, edit("data/train.jsonl", "data/none.jsonl"))
    assert specs.data(experiment, "train")["source"] == {"json": "data/none.jsonl", "sha256": []}
    with pytest.raises(InputError, match=r"data\.train\.json is 'data/none\.jsonl'.*not exist"):
        experiment.require_files()
    read(tmp_path).require_files()


def test_nodes_and_splits(tmp_path: Path) -> None:
    experiment = read(tmp_path)
    assert experiment.methods == [
        "kd",
        "seqkd",
        "gkd",
        "distillm",
        "abkd",
        "taid",
        "amid",
        "skd",
        "minillm",
    ]
    assert experiment.splits == ["train", "dev", "heldout"]
    assert experiment.lineages == [
        "teacher-sft__student-kd",
        "teacher-sft__student-minillm",
        "teacher-sft__assistant-minillm__student-minillm",
        "teacher-sft__assistant-kd__student-minillm",
    ]
    assert Node("teacher-sft", 1) in experiment.nodes
    assert Node("teacher-sft", 2) not in experiment.nodes
    assert {
        Node(f"{name}-sft", seed) for name in ("assistant", "student") for seed in (1, 2)
    } < set(experiment.nodes)
    assert len(experiment.nodes) == 1 + 4 + 2 * (4 + 2)
    assert experiment.start_of("teacher-sft__student-kd") == "base"
    assert experiment.start_of("teacher-sft__student-minillm") == "sft"
    assert experiment.start_of("student-sft") == "base"


def test_settings_of_a_model_come_before_those_of_the_method_and_the_defaults(
    tmp_path: Path,
) -> None:
    experiment = read(tmp_path)
    assistant = specs.train(experiment, "teacher-sft__assistant-minillm", 1)["settings"]
    student = specs.train(experiment, "teacher-sft__student-minillm", 1)["settings"]
    assert (assistant["batch_size"], assistant["steps"], assistant["teacher_mix"]) == (32, 20, 0.2)
    assert student == {**assistant, "batch_size": 64, "lm_batch_size": 64}
    assert student["learning_rate"] == 5e-5
    assert student["lm_weight"] == 0.0, "without a corpus the term is off"


def test_adapters_of_a_model_are_its_own_with_all_defaults(tmp_path: Path) -> None:
    """And not a mixture with those for all models."""
    shape = "    weights: {scratch: {layers: 1, width: 32, heads: 4, positions: 64}}\n"
    own = f"{shape}    training: {{minillm: {{lora: {{rank: 2}}}}}}\n"
    text = edit(shape, own, edit("steps: 20", "lora: {alpha: 5}, steps: 20"))
    experiment = read(tmp_path, text)
    found = [
        specs.train(experiment, f"teacher-sft__{model}-minillm", 1)["settings"]["lora"]
        for model in ("assistant", "student")
    ]
    rest = {"dropout": 0.0, "targets": None}
    assert found == [{"rank": 16, "alpha": 5.0, **rest}, {"rank": 2, "alpha": 32.0, **rest}]
    assert specs.train(experiment, "student-sft", 1)["settings"]["lora"] is None


def test_settings_of_a_regime_stand_beside_it(tmp_path: Path) -> None:
    """A model that takes its responses from elsewhere need not undo what the others are told."""
    text = edit(*taught_by("gkd", "on_policy_share: 0.9"))
    shape = "    weights: {scratch: {layers: 1, width: 32, heads: 4, positions: 64}}\n"

    def student(own: str) -> dict[str, Any]:
        whole = edit(shape, f"{shape}    training: {{gkd: {{{own}}}}}\n", text)
        return specs.train(read(tmp_path, whole), "teacher-sft__student-gkd", 1)["settings"]

    assert student("on_policy: off")["on_policy"] == "off"
    assert student("on_policy: adaptive, capacity: 200")["capacity"] == 200
    assert student("on_policy_share: 0.1")["on_policy_share"] == 0.1
    with pytest.raises(InputError, match=r"models\.student\.training\.gkd\.capacity has no effect"):
        student("capacity: 200")


def test_specs_do_not_depend_on_how_the_file_is_written(tmp_path: Path) -> None:
    text = edit(
        "steps: 20, learning_rate: 5e-5", "learning_rate: 0.00005, discount: 0.95, steps: 2e1"
    )
    text = edit("epochs: 2", "epochs: 2.0", text)
    for name in ("teacher-sft__student-minillm", "teacher-sft__student-kd"):
        before, after = (specs.train(read(tmp_path, each), name, 1) for each in (GOOD, text))
        assert canonical_json(before) == canonical_json(after)


def test_specs_hold_what_their_stage_reads_and_no_more(tmp_path: Path) -> None:
    before = read(tmp_path)
    changed = edit("seeds: [10, 20]", "seeds: [10, 30]")
    changed = edit("a paper", "another paper", changed)
    after = read(tmp_path, edit("label: direct", "label: other", changed))
    node = ("teacher-sft__student-minillm", 2)
    assert specs.train(before, *node) == specs.train(after, *node)
    assert specs.data(before, "train") == specs.data(after, "train")
    assert specs.tokenizer(before) == specs.tokenizer(after)
    assert specs.evaluate(before, *node, "heldout")["seeds"] == [10, 20]
    assert specs.evaluate(after, *node, "heldout")["seeds"] == [10, 30]
    assert specs.report(before) != specs.report(after)
    longest = specs.evaluate(before, *node, "heldout")["decoding"]["max_new_tokens"]
    assert longest == 64 - 48 == specs.train(before, *node)["dev_decoding"]["max_new_tokens"]


def test_data_are_known_by_content(tmp_path: Path) -> None:
    text = edit("  max_length: 64", "  drop_leaks: true\n  max_length: 64")
    text = edit("heldout: {demo: {part: test, rows: 10}}", "heldout: {folder: data/folder}", text)
    (tmp_path / "data/folder").mkdir(parents=True)
    (tmp_path / "data/folder/train.jsonl").write_text("one")
    train = tmp_path / "data/train.jsonl"
    spec = specs.data(read(tmp_path, text), "train")
    assert spec["source"] == {"json": "data/train.jsonl", "sha256": [file_digest(train)]}
    held_out = {
        "folder": "data/folder",
        "split": "train",
        "sha256": [["train.jsonl", file_digest(tmp_path / "data/folder/train.jsonl")]],
    }
    assert spec["exclude"] == [held_out]
    assert "exclude" not in specs.data(read(tmp_path, text), "dev")

    os.utime(train)
    assert specs.data(read(tmp_path, text), "train") == spec
    (tmp_path / "data/folder/train.jsonl").write_text("two")
    assert specs.data(read(tmp_path, text), "train") != spec


def test_what_is_fetched_is_known_by_what_pins_it(tmp_path: Path) -> None:
    """And parts of one file differ in their rows alone."""
    file = f"hub: some/data, revision: {REVISION}, file: raw.jsonl"
    text = edit("{json: data/train.jsonl}", f"{{{file}, rows: [1000, null]}}")
    text = edit("{demo: {part: dev, rows: 10}}", f"{{{file}, rows: [0, 1000]}}", text)
    address = {"url": "https://host/rows.jsonl", "sha256": "0" * 64}
    columns = {"instruction": "question"}
    text = edit("{demo: {part: test, rows: 10}}", json.dumps({**address, "columns": columns}), text)
    experiment = read(tmp_path, text)
    pinned = {"hub": "some/data", "revision": REVISION, "file": "raw.jsonl"}
    assert specs.data(experiment, "train")["source"] == {**pinned, "rows": [1000, None]}
    assert specs.data(experiment, "dev")["source"] == {**pinned, "rows": [0, 1000]}
    assert specs.data(experiment, "heldout")["source"] == {**address, "columns": columns}
    assert not experiment.missing


def with_weights(folder: str) -> str:
    return edit(
        "{hub: some/model, revision: 15ea56dee5df4983c59b2538573817e1667135e2}",
        f"{{folder: {folder}}}",
    )


def bring_weights(folder: Path, weights: str = "12345") -> None:
    (folder / ".cache").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / name).write_text(weights)


def test_weights_are_known_by_the_content_of_the_files_that_are_read(tmp_path: Path) -> None:
    def known(folder: str) -> Any:
        return without_places(specs.base(read(tmp_path, with_weights(folder)), "hub.model"))

    bring_weights(tmp_path / "weights")
    bring_weights(tmp_path / "colleague/copy")
    for unread in ("README.md", "optimizer.pt", ".cache/x", "pytorch_model.bin"):
        (tmp_path / "weights" / unread).write_text("1")
    found = known("weights")
    assert [name for name, _ in found["weights"]["sha256"]] == [
        *("config.json", "model.safetensors", "tokenizer.json")
    ]
    assert "weights" not in json.dumps(found["weights"])
    assert known("colleague/copy") == found
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        bring_weights(tmp_path / f"other-{name}")
        (tmp_path / f"other-{name}" / name).write_text("12346")  # of the same size
        assert known(f"other-{name}") != found
    assert known("nowhere")["weights"] == {"sha256": []}


def test_weights_that_this_workflow_made_are_known_by_their_record(tmp_path: Path) -> None:
    """Of a teacher of another experiment nothing but the record is read, and trained anew it is another one."""
    model = tmp_path / "results/other/models/teacher-sft/seed1/model"
    bring_weights(model)
    experiment = read(tmp_path, with_weights("results/other/models/teacher-sft/seed1/model"))
    by_content = specs.base(experiment, "hub.model")
    files = {f"model/{path.name}": file_digest(path) for path in model.glob("[!.]*")}
    write_json(model.parent / "manifest.json", sealed({"kind": "model", "files": files}))
    assert specs.base(experiment, "hub.model") == by_content
    files["model/model.safetensors"] = "0" * 64
    write_json(model.parent / "manifest.json", sealed({"kind": "model", "files": files}))
    assert ["model.safetensors", "0" * 64] in specs.base(experiment, "hub.model")["weights"][
        "sha256"
    ]
    # a record that is damaged says nothing
    (model.parent / "manifest.json").write_text("{}")
    assert specs.base(experiment, "hub.model") == by_content


def test_data_are_known_by_their_content(tmp_path: Path) -> None:
    """Every kind of local source, in another place: the same settings but for the place."""

    def known(source: str) -> Any:
        return without_places(
            specs.data(read(tmp_path, edit("{json: data/train.jsonl}", source)), "train")
        )

    (tmp_path / "data").mkdir(exist_ok=True)
    for place in ("data", "elsewhere/deep"):
        folder = tmp_path / place / "set"
        folder.mkdir(parents=True)
        for file in (folder / "part.jsonl", folder.parent / "mine.jsonl"):
            file.write_text('{"instruction": "a", "output": "b"}')
    digest = file_digest(tmp_path / "data/mine.jsonl")
    pairs = [
        ("{json: data/mine.jsonl}", "{json: elsewhere/deep/mine.jsonl}"),
        (f"{{json: data/mine.jsonl, sha256: {digest}}}", "{json: elsewhere/deep/mine.jsonl}"),
        (f"{{url: 'https://host/a.jsonl', sha256: {digest}}}", "{json: data/mine.jsonl}"),
        ("{folder: data/set}", "{folder: elsewhere/deep/set}"),
        *(
            (
                f"{{hub: some/data, revision: {at}, file: a.jsonl, sha256: {digest}}}",
                "{json: data/mine.jsonl}",
            )
            for at in ("main", REVISION)
        ),
    ]
    for one, other in pairs:
        assert known(one) == known(other), one
    assert known(pairs[0][0]) != known("{json: data/mine.jsonl, rows: [0, 1]}")
    before = known(pairs[3][0])
    (tmp_path / "data/set/part.jsonl").write_text('{"instruction": "a", "output": "c"}')
    assert known(pairs[3][0]) != before
    # what is not known by its content is known by its place
    hub = "{hub: some/data, revision: " + REVISION + "}"
    assert known(hub)["source"].items() >= {"hub": "some/data", "revision": REVISION}.items()


def test_the_weights_beside_a_tokenizer_are_not_read(tmp_path: Path) -> None:
    bring_weights(tmp_path / "model")
    text = edit("{train: {vocabulary: 300}}", "{folder: model, vocabulary: 300}")
    names = [name for name, _ in specs.tokenizer(read(tmp_path, text))["source"]["sha256"]]
    assert names == ["config.json", "tokenizer.json"]


def test_deepspeed_configuration_is_part_of_the_settings(tmp_path: Path) -> None:
    experiment = read(tmp_path, edit("steps: 10", "steps: 10, deepspeed: zero1"))
    settings = specs.train(experiment, "teacher-sft", 1)["settings"]
    assert settings["deepspeed"] == {
        "name": "zero1",
        "config": {"zero_optimization": {"stage": 1}},
    }


def test_corpus_is_a_split_and_switches_the_language_modelling_term_on(tmp_path: Path) -> None:
    assert "corpus" not in read(tmp_path, edit("  max_le", "  corpus: null\n  max_le")).splits
    text = edit("  max_length: 64", "  corpus: {text: data/corpus.txt}\n  max_length: 64")
    experiment = read(tmp_path, text)
    assert experiment.splits == ["train", "dev", "corpus", "heldout"]
    source = {"text": "data/corpus.txt", "sha256": []}
    expected = {"split": "corpus", "source": source, "block_length": 64, "blocks": None}
    assert specs.data(experiment, "corpus") == expected
    settings = specs.train(experiment, "teacher-sft__student-minillm", 1)["settings"]
    assert settings["lm_weight"] == 1.0


def test_what_a_student_reads_of_what_its_teacher_wrote(tmp_path: Path) -> None:
    def cached(kd: str, minillm: str = "", corpus: str = "") -> list[dict[str, str]]:
        text = edit("  kd: {epochs: 2}", f"  kd: {{epochs: 2, {kd}}}")
        text = edit("  minillm: {steps: 20", f"  minillm: {{{minillm}steps: 20", text)
        experiment = read(tmp_path, edit("  max_length", f"{corpus}  max_length", text))
        names = ("teacher-sft__student-kd", "teacher-sft__student-minillm")
        return [experiment.cached_inputs(name) for name in names]

    text, corpus = "responses: teacher", "  corpus: {text: data/corpus.txt}\n"
    assert cached("") == [{}, {}]
    assert cached(text) == [{"train": "generations"}, {}]
    assert cached("teacher_outputs: hidden")[0] == {"outputs": "outputs/train/hidden"}
    both = {"train": "generations", "outputs": "outputs/generations/top_k"}
    assert cached(f"{text}, teacher_outputs: top_k")[0] == both
    assert cached("", "lm_teacher_outputs: top_k, ", corpus)[1] == {
        "corpus_outputs": "outputs/corpus/top_k"
    }
    assert cached("", "lm_teacher_outputs: top_k, lm_weight: 0, ", corpus)[1] == {}


def test_what_teachers_write_is_named_once_for_all_their_students(tmp_path: Path) -> None:
    settings = "epochs: 2, responses: teacher, teacher_outputs: top_k"
    text = edit("  kd: {epochs: 2}", f"  kd: {{{settings}}}")
    experiment = read(
        tmp_path, edit("seeds: [1, 2]", "seeds: [1, 2]\nteacher_cache: {shards: 2}", text)
    )
    # both training seeds have the one head of the chain as their teacher
    assert specs.report(experiment)["teacher_cache"] == [
        ["teacher-sft", 1, "generations", 2],
        ["teacher-sft", 1, "outputs/generations/top_k", None],
    ]
    answers, outputs = experiment.teacher_cache
    assert answers.manifest == "teacher-sft/seed1/generations/manifest.json"
    assert answers.logs == [
        f"teacher-sft/seed1/generations/part{part}of2/metrics.jsonl" for part in (1, 2)
    ]
    assert outputs.logs == ["teacher-sft/seed1/outputs/generations/top_k/metrics.jsonl"]
    files = set(comparison.files(experiment, []))
    cached = (answers.manifest, *answers.logs, outputs.manifest, *outputs.logs)
    assert {f"results/{experiment.name}/teachers/{file}" for file in cached} <= files
    wildcards = {"teacher": "teacher-sft", "seed": "1", "part": "2", "parts": "2"}
    spec = specs.of(experiment, "generate", **wildcards)
    assert spec == specs.generate(experiment, "teacher-sft", 1, 2, 2) and spec["part"] == 2
    assert read(tmp_path, edit("  kd: {epochs: 2}", "  kd: {epochs: 2}")).teacher_cache == []


def test_the_number_of_shards_is_no_setting_of_the_responses(tmp_path: Path) -> None:
    def of_teacher(settings: str) -> tuple[dict, ...]:
        text = edit(
            "  kd: {epochs: 2}", "  kd: {epochs: 2, responses: teacher, teacher_outputs: top_k}"
        )
        text = edit("seeds: [1, 2]", f"seeds: [1, 2]\nteacher_cache: {settings}", text)
        experiment, teacher = read(tmp_path, text), ("teacher-sft", 1)
        outputs = [
            specs.outputs(experiment, *teacher, "train", kind) for kind in ("top_k", "hidden")
        ]
        return specs.generations(experiment, *teacher), *outputs

    one = of_teacher("{}")
    assert one[0]["decoding"] == {"temperature": 1.0, "max_new_tokens": 16}
    assert of_teacher("{shards: 7}") == one
    assert [a == b for a, b in zip(one, of_teacher("{seed: 2}"), strict=True)] == [
        False,
        True,
        True,
    ]
    assert [a == b for a, b in zip(one, of_teacher("{top_k: 9}"), strict=True)] == [
        True,
        False,
        True,
    ]


def test_blocks_of_a_corpus_are_settings_of_its_stage_and_not_of_its_source(tmp_path: Path) -> None:
    revision = "15ea56dee5df4983c59b2538573817e1667135e2"
    corpus = f"hub: some/corpus, revision: {revision}, blocks: 1000, block_length: 32"
    experiment = read(tmp_path, edit("  max_length", f"  corpus: {{{corpus}}}\n  max_length"))
    source = {"hub": "some/corpus", "revision": revision, "config": None, "split": "train"}
    expected = {"split": "corpus", "source": source, "block_length": 32, "blocks": 1000}
    assert specs.data(experiment, "corpus") == expected
    assert specs.data_report(experiment)["splits"]["corpus"] == source
    # a default that is written out changes nothing
    plain, written = (
        read(tmp_path, edit("  max_length", f"  corpus: {{text: a{more}}}\n  max_length"))
        for more in ("", ", block_length: 64, blocks: null")
    )
    assert specs.data(plain, "corpus") == specs.data(written, "corpus")


def test_a_corpus_of_several_text_files_is_known_by_those_that_are_read(tmp_path: Path) -> None:
    text = edit("  max_length: 64", "  corpus: {text: data/texts}\n  max_length: 64")
    (tmp_path / "data/texts/more").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "more/c.txt", "notes.md", ".a.txt"):
        (tmp_path / "data/texts" / name).write_text(name)
    experiment = read(tmp_path, text)
    names = ["a.txt", "b.txt", "more/c.txt"]
    digests = [[name, file_digest(tmp_path / "data/texts" / name)] for name in names]
    source = {"text": "data/texts", "sha256": digests}
    assert specs.data(experiment, "corpus")["source"] == source


def test_equal_sizes_may_teach_each_other(tmp_path: Path) -> None:
    text = edit("{layers: 2, width: 32", "{layers: 3, width: 32")
    assert (
        read(tmp_path, text).parameters["assistant"] == read(tmp_path, text).parameters["teacher"]
    )


def test_yaml_merge_keys_and_names_that_look_like_other_things(tmp_path: Path) -> None:
    text = edit(
        "  sft: {steps: 10}\n  kd: {epochs: 2}",
        "  sft: &short {steps: 10, dropout: 0.2}\n  kd: {<<: *short, dropout: 0.3}",
    ).replace("hub.model", "no")
    experiment = read(tmp_path, text)
    assert experiment.settings["training"]["kd"]["steps"] == 10
    assert experiment.settings["training"]["kd"]["dropout"] == 0.3
    assert "no" in experiment.parameters


@pytest.mark.parametrize("vocabulary, layers, width", [(300, 1, 32), (701, 3, 192), (50257, 2, 64)])
def test_parameters_from_scratch_are_those_of_the_model(
    vocabulary: int, layers: int, width: int
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary, n_layer=layers, n_embd=width, n_head=2, n_positions=96
    )
    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    shape = {"layers": layers, "width": width, "heads": 2, "positions": 96}
    assert gpt2_parameters(shape, vocabulary) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("path", sorted((ROOT / "config/experiments").glob("*.yaml")), ids=str)
def test_shipped_experiments_are_right_and_need_no_files_to_plan(path: Path) -> None:
    experiment = load(path, ROOT)
    for lineage, seed in experiment.nodes:
        if is_given(lineage):
            continue
        spec = specs.train(experiment, lineage, seed)
        own = [f"{spec['model']}-sft", seed] if experiment.start_of(lineage) == "sft" else None
        assert (spec["seed"], spec.get("init")) == (seed, own)
    for split in experiment.splits:
        assert specs.data(experiment, split)["split"] == split
    assert specs.report(experiment)["experiment"] == path.stem


def test_the_study_plans_each_shared_model_once() -> None:
    experiment = load(ROOT / "config/experiments/gpt2-dolly.yaml", ROOT)
    lineages = [lineage for lineage, _ in experiment.nodes]
    assert len(lineages) == len(set(lineages)) == 4 + 7
    labels = [chain["label"] for chain in experiment.chains]
    assert labels == ["2.B", "2.C", "2.D", "3.A", "3.B", "3.C", "3.D"]
    targets = specs.report(experiment)["targets"]
    assert targets[1]["scores"]["1.5B-sft"] == {"dolly": 27.4}, "row 2.A, the teacher itself"
    assert set(targets[1]["scores"]) == {"1.5B-sft", *experiment.lineages}


def test_an_ablation_differs_from_the_whole_method_in_one_setting() -> None:
    experiment = load(ROOT / "config/experiments/minillm-ablations.yaml", ROOT)
    whole, *others = experiment.lineages
    expected = [("length_normalisation", False), ("teacher_mix", 0.0), ("single_step_weight", 0.0)]
    settings = specs.train(experiment, whole, 10)["settings"]
    for name, (key, value) in zip(others, expected, strict=True):
        assert settings[key] != value
        assert specs.train(experiment, name, 10)["settings"] == {**settings, key: value}
        model, other = (lineage.split("__")[1].rsplit("-", 1)[0] for lineage in (whole, name))
        starts = [specs.train(experiment, f"{each}-sft", 10) for each in (model, other)]
        assert starts[0]["settings"] == starts[1]["settings"]
        bases = [specs.base(experiment, each) for each in (model, other)]
        assert bases[0]["weights"] == bases[1]["weights"]
    (targets,) = specs.report(experiment)["targets"]
    assert list(targets["scores"]) == experiment.lineages


def test_reading_an_experiment_is_fast_and_imports_nothing_heavy() -> None:
    script = (
        "import sys, pathlib, takd.experiment.experiment as e; from takd.experiment import specs;"
        "root = pathlib.Path(sys.argv[1]);"
        "specs.report(e.load(root / 'config/experiments/gpt2-dolly.yaml', root));"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pandas') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def keys() -> list[tuple[str, dict[str, Any]]]:
    """Every key of the schema with what it says."""
    schema = load_schema()
    found = [(key, part) for key, part, _ in experiment_tables.below(schema)]
    for name, definition in schema["$defs"].items():
        found += [(f"{name}.{key}", part) for key, part, _ in experiment_tables.below(definition)]
    return found


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(load_schema())


def test_every_key_has_a_description_and_every_setting_its_trade_off() -> None:
    assert len(keys()) > 100
    for key, part in keys():
        part = follow(part)
        inner = bool(part.get("properties")) or isinstance(part.get("additionalProperties"), dict)
        listed = bool(part.get("items", {}).get("properties"))
        if not key.endswith("NAME") and key not in ("data", "evaluation", "report", "variables"):
            assert part.get("description"), key
        if not inner and not listed:
            assert part.get("x-trade-off"), key


def test_every_default_is_valid() -> None:
    checked = 0
    for key, part in keys():
        if "default" in part:
            inner = {**follow(part), "$defs": load_schema()["$defs"]}
            problems = list(Draft202012Validator(inner).iter_errors(part["default"]))
            assert not problems, (key, problems)
            checked += 1
    assert checked > 60


def test_the_documentation_is_made_from_the_schema() -> None:
    text = experiment_tables.PAGE.read_text(encoding="utf-8")
    assert experiment_tables.page(text) == text, (
        "run PYTHONPATH=src python docs/experiment_tables.py"
    )
    for key, _ in keys():
        parts = key.split(".")
        names = [".".join(parts[at:]) for at in range(len(parts))]
        assert any(f"`{name}`" in text or f"### {name}\n" in text for name in names), key


def test_defaults_are_those_of_the_reference(tmp_path: Path) -> None:
    settings = read(tmp_path, edit("  minillm: {steps: 20, learning_rate: 5e-5}", "  minillm: {}"))
    minillm = specs.train(settings, "teacher-sft__student-minillm", 1)["settings"]
    expected = json.loads(
        '{"steps": 5000, "epochs": 10, "batch_size": 64, "learning_rate": 5e-6, "warmup_steps": 100,'
        ' "schedule": "constant", "betas": [0.9, 0.95], "weight_decay": 1e-6, "gradient_clip": 1.0,'
        ' "rollouts_per_round": 256, "inner_epochs": 4, "teacher_mix": 0.2, "discount": 0.95,'
        ' "reward_scale": 0.5, "reward_clip": 100, "ratio_clip": 0.2, "whitening": "slots",'
        ' "return_includes_current": true, "clip_weighted_ratio": true, "importance": "token",'
        ' "length_normalisation": true, "single_step_importance": false, "start": "sft"}'
    )
    assert {key: minillm[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("kd", {"responses": "labels", "divergence": "forward_kl", "ratio": 0.5, "start": "base"}),
        ("seqkd", {"responses": "teacher", "start": "base"}),
        # as in TRL, whose paper recommends no values but tries them
        ("gkd", {"on_policy": "mixed", "on_policy_share": 0.5, "beta": 0.5, "start": "sft"}),
        # the authors' scripts/gpt2/distillm/train_0.1B_1.5B.sh and arguments.py
        (
            "distillm",
            {"divergence": "skewed_forward_kl", "skew": 0.1, "on_policy": "adaptive", "ratio": 1.0}
            | {"initial_share": 0.0, "share_step": 0.1, "loss_rise": 0.1, "capacity": 1000}
            | {"weight_decay": 0.01, "schedule": "cosine", "warmup_steps": 0, "start": "sft"},
        ),
        ("abkd", {"alpha": 0.2, "beta": 0.7, "on_policy": "off", "ratio": 1.0, "start": "sft"}),
        (
            "skd",
            {"teacher_top_k": 25, "divergence": "forward_kl", "on_policy_share": 1.0}
            | {"on_policy": "mixed", "temperature": 1.0, "start": "sft"},
        ),
        ("taid", {"target_start": 0.4, "target_alpha": 5e-4, "target_beta": 0.99, "ratio": 1.0}),
    ],
)
def test_defaults_are_those_of_their_authors(
    method: str, expected: dict[str, Any], tmp_path: Path
) -> None:
    text = edit("[kd, minillm], label", f"[{method}, minillm], label")
    if method != "kd":
        text = edit("  kd:", f"  {method}: {{epochs: 2}}\n  kd:", text)
    settings = specs.train(read(tmp_path, text), f"teacher-sft__student-{method}", 1)["settings"]
    assert {key: settings[key] for key in expected} == expected


def refusal(folder: Path, *edits: tuple[str, str]) -> list[str]:
    """Lines of what is said of a file with several edits."""
    text = GOOD
    for old, new in edits:
        text = edit(old, new, text)
    with pytest.raises(InputError) as caught:
        read(folder, text)
    lines = str(caught.value).splitlines()
    assert all(line.startswith("config/experiments/mine.yaml, line ") for line in lines)
    return [line.partition(": ")[2] for line in lines]


def test_all_that_the_schema_refuses_is_told_at_once_in_the_order_of_the_file(
    tmp_path: Path,
) -> None:
    said = refusal(
        tmp_path,
        ("layers: 3", "layers: three"),
        ("max_length: 64", "max_lenght: 64"),
        ("seeds: [1, 2]", "seeds: []"),
        ("sft: {steps: 10}", "sft: {steps: 10, lr: 1e-4, dropout: 2, shuffle: true}"),
        ("  seeds: [10, 20]", "  seeds: [10, 10]"),
        ("source: a paper, ", ""),
    )
    assert [line.split()[0] for line in said] == [
        "models.teacher.weights.scratch.layers",
        "data.max_lenght",
        "seeds",
        *("training.sft.lr", "training.sft.shuffle", "training.sft.dropout"),
        "evaluation.seeds",
        "report.targets[0]",
    ]


def test_all_rules_that_a_file_breaks_are_told_at_once(tmp_path: Path) -> None:
    said = refusal(
        tmp_path,
        ("heads: 4, positions: 64}}\n  assistant", "heads: 5, positions: 64}}\n  assistant"),
        ("rows: 10}}\n  max_length", "rows: 10}, rows: [0, 1]}\n  max_length"),
        ("max_prompt_length: 48", "max_prompt_length: 64"),
        ("[teacher, student], methods", "[teacher, pupil], methods"),
        ("minillm: {steps: 20, ", "minillm: {steps: 20, batch_size: 48, lm_weight: 0.5, "),
        ("{teacher-sft: {heldout", "{teacher-sft: {held"),
    )
    assert [line.split()[0] for line in said] == [
        *("data.dev.rows", "data.max_prompt_length"),
        *("models.teacher.weights.scratch.heads", "chains[0].models[1]"),
        *("training.minillm.lm_weight", "training.minillm.batch_size"),
    ]


def test_variables_of_which_nobody_says_anything_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, edit("data/train.jsonl", '"{data}/train.jsonl"'))
    with pytest.raises(InputError) as caught:
        load(path, tmp_path, {"date": "x", "dta": "y"})
    first, *others = str(caught.value).splitlines()
    assert "nothing says what {data} is" in first
    assert ["variable date," in others[0], "variable dta," in others[1]] == [True, True]


def test_no_more_errors_than_can_be_read(tmp_path: Path) -> None:
    many = ", ".join(f"key{n}: {n}" for n in range(50))
    text = edit("sft: {steps: 10}", f"sft: {{steps: 10, {many}}}")
    with pytest.raises(InputError) as caught:
        read(tmp_path, text)
    *_, last = lines = str(caught.value).splitlines()
    assert len(lines) == 21 and last == "and 30 more errors."


@pytest.mark.parametrize(
    ("place", "key", "meant"),
    [
        ("sft: {steps: 10", "lr: 1e-4", "'learning_rate'"),
        ("sft: {steps: 10", "LR: 1e-4", "'learning_rate'"),
        ("sft: {steps: 10", "num_train_epochs: 3", "'epochs'"),
        ("sft: {steps: 10", "max_steps: 3", "'steps'"),
        ("sft: {steps: 10", "per_device_train_batch_size: 8", "'batch_size'"),
        ("sft: {steps: 10", "lr_scheduler_type: linear", "'schedule'"),
        ("sft: {steps: 10", "warmup_ratio: 0.1", "'warmup_steps'"),
        ("sft: {steps: 10", "max_grad_norm: 1", "'gradient_clip'"),
        ("sft: {steps: 10", "bf16: true", "'precision'"),
        ("sft: {steps: 10", "adam_beta2: 0.95", "'betas'"),
        ("sft: {steps: 10", "eval_steps: 10", "'evaluate_every'"),
        ("sft: {steps: 10", "lora: {r: 8}", "'rank'"),
        ("sft: {steps: 10", "max_seq_length: 512", "data.max_length"),
        ("sft: {steps: 10", "seed: 3", "mean seeds?"),
        ("sft: {steps: 10", "max_length: 512", "it stands under data;"),
        ("sft: {steps: 10", "gradient_accumulation_steps: 4", "follows from batch_size"),
        ("sft: {steps: 10", "gradient_checkpointing: true", "gradient_checkpointing: 1."),
        ("sft: {steps: 10", "stepps: 3", "'steps'"),
        ("layers: 3", "n_head: 4", "'heads'"),
        ("  seeds: [10, 20]", "do_sample: false", "evaluation.decoding.sample"),
        ("  max_length: 64", "validation: {demo: {part: dev, rows: 9}}", "'dev'"),
    ],
)
def test_keys_as_others_call_them(place: str, key: str, meant: str, tmp_path: Path) -> None:
    joint = "\n  " if place.startswith("  ") else ", "
    (said,) = refusal(tmp_path, (place, f"{place}{joint}{key}"))
    assert "is not a known key; " in said and meant in said


def test_names_of_others_lead_to_keys_that_there_are() -> None:
    from takd.experiment.schema import all_keys, load_schema, usual_names

    known = {place.rpartition(".")[2] for place in all_keys()}
    assert set(usual_names().values()) <= known
    # the key of sweeps is said of where no sweep may stand
    instead = set(load_schema()["x-instead"]) - {"values"}
    assert not instead & (known | set(usual_names()))


def test_names_that_make_too_long_a_folder_are_refused(tmp_path: Path) -> None:
    """Names of many settings of a sweep, too; at the limit all is well."""
    longest = 200 - len("teacher-sft__assistant-minillm__-minillm")
    read(tmp_path, GOOD.replace("student", "s" * longest))
    with pytest.raises(InputError) as caught:
        read(tmp_path, GOOD.replace("student", "s" * (longest + 1)))
    (line,) = str(caught.value).splitlines()[-1:]
    assert "chains[1].methods[0] gives teacher-sft__assistant-minillm__s" in line
    assert "a folder's name of 201 bytes, of 200 at most" in line
