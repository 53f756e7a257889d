"""Stage: train one model of a chain, by any method.

Inputs: `base` (initial weights), `tokenizer`, `train`, `dev`, and, if the method uses them,
`teacher`, `init`, `corpus`, and the teacher's stored outputs for `train` and `corpus`: `outputs`,
`corpus_outputs`. All are manifests, with their folders beside them. Outputs: `model` (best by the
dev measure `keep`), `init` (supervised runs: best by dev loss, the initial weights of on-policy
students), `metrics`, `manifest`.
"""

import importlib
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from takd.data.arrow import PreparedRows, dataset_of
from takd.decoding import loading
from takd.decoding.model_checks import check_model
from takd.decoding.prompts import Decoding
from takd.losses.teacher_logits import StoredOutputs
from takd.methods.base import Context, Method
from takd.models import causal_lm
from takd.models.flops import spent
from takd.models.lora import add_lora
from takd.models.precision import choose_precision, pretrained_in, torch_dtype
from takd.models.tokenizer_check import entries
from takd.runtime.checkpoints import Checkpoints, resume_key
from takd.runtime.deepspeed_builds import await_builds
from takd.runtime.errors import InputError
from takd.runtime.files import read_json
from takd.runtime.launch import rank, world_size
from takd.runtime.stage import Stage
from takd.runtime.stage_lock import Lock
from takd.training import devices
from takd.training.exporting import Exported
from takd.training.loop import Run
from takd.training.spending import share_of

WEIGHTS = "model.safetensors"
SPLITS = {"train": "rows", "dev": "dev_rows"}  # with the setting of their number of rows


def run(stage: Stage) -> None:
    """Train, resuming from the last checkpoint, and move the outputs into place."""
    loading.configure_libraries(stage)
    # at each save it would warn that tied weights are saved once
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    root = stage.outputs["manifest"].parent / "checkpoints"
    checkpoints = Checkpoints(root, resume_key(stage))
    if rank() > 0:
        _train(stage, checkpoints)
        return
    with Lock(root / "lock", stage.say):
        checkpoints.open()
        _train(stage, checkpoints)
    checkpoints.close()


def _train(stage: Stage, checkpoints: Checkpoints) -> None:
    spec, settings = stage.spec, stage.spec["settings"]
    kind: type[Method] = importlib.import_module(f"takd.methods.{spec['method']}").METHOD
    share = share_of(stage)
    labelled = kind.needs_answers(settings)
    train, dev = (_rows(stage, name, settings[key], labelled) for name, key in SPLITS.items())
    tokenizer = causal_lm.tokenizer_of(stage)
    weights = _weights(stage)
    precision = choose_precision(settings["precision"], pretrained_in(weights))
    student = causal_lm.load_model(
        weights, seed=spec["seed"], dropout=settings["dropout"], dtype=torch.float32
    )
    causal_lm.freeze_other_parts(student)
    vocabulary = causal_lm.check_vocabulary(student, tokenizer, spec["model"])
    parameters = student.num_parameters()
    decoding = Decoding(**spec["dev_decoding"])
    exported = Exported.of(student, weights, tokenizer, vocabulary, decoding)
    if rank() == 0 and (difference := exported.misread()):
        stage.say(
            f"{spec['lineage']}: AutoTokenizer reads this tokenizer otherwise beside a {student.config.model_type}"
            f" ({difference}); read it from the trained model's folder by PreTrainedTokenizerFast.from_pretrained."
        )
    if settings["lora"]:
        named = {"name": spec["model"], "seed": spec["seed"]}
        add_lora(student, settings["lora"], **named, frozen_dtype=torch_dtype(precision))
    if stage.gradient_checkpointing:
        causal_lm.checkpoint_activations(student, spec["model"])
    teacher = None
    if spec.get("asks_teacher"):
        teacher, known = loading.load(
            stage,
            stage.input("teacher").parent / _teacher_folder(spec),
            tokenizer,
            "teacher",
            spec["max_length"],
            precision=settings["precision"],
        )
        vocabulary = min(vocabulary, known)
    stored = {
        split: StoredOutputs(stage.input(name).parent / "outputs.safetensors")
        for split, name in (("train", "outputs"), ("corpus", "corpus_outputs"))
        if stage.many(name)
    }
    if vocabulary < entries(tokenizer) and any("tokens" in s.names for s in stored.values()):
        raise InputError(
            f"model '{spec['model']}' lacks the entry of a pad token that its teacher's likeliest tokens may name;"
            " choose teacher_outputs: hidden, or a tokenizer without that token."
        )
    context = Context(
        settings=settings,
        seed=spec["seed"],
        train=train,
        vocabulary=vocabulary,
        max_new_tokens=decoding.max_new_tokens,
        teacher=teacher,
        corpus=dataset_of(stage, "corpus") if stage.many("corpus") else None,
        stored=stored,
    )
    method = kind(context)
    if settings["deepspeed"]:
        await_builds(stage.say)
    accelerator = devices.start(
        precision,
        accumulation=_micro_batches(method, stage),
        micro_batch=stage.micro_batch,
        gradient_clip=settings["gradient_clip"],
        deepspeed=settings["deepspeed"],
    )
    job = Run(
        stage=stage,
        accelerator=accelerator,
        method=method,
        model=student,
        exported=exported,
        dev=dev,
        decoding=decoding,
        precision=precision,
        keep={"model": settings["keep"], **({"init": "loss"} if "init" in stage.outputs else {})},
        checkpoints=checkpoints,
        rouge_tokenizer=read_json(stage.input("dev"))["rouge_tokenizer"],
        share=share,
    )
    # checked as it will sample: on its device, in its dtypes, under its autocast
    with job.student.whole() as whole:
        check_model(whole, spec["model"], spec["max_length"])
    try:
        job.train()
    finally:
        job.keeper.finish()  # also after an error, complete the checkpoint that is being written
    job.end()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _publish(stage, job, parameters)


def _rows(stage: Stage, split: str, count: int | None, labelled: bool) -> PreparedRows:
    """Load the first rows of a split, or all; if `labelled`, those with a response, which stand first.

    Raises:
        InputError: there are none.
    """
    found = dataset_of(stage, split)
    alone = read_json(stage.input(split)).get("counts", {}).get("without_answer", 0)
    if labelled and alone:
        if alone == len(found):
            raise InputError(
                f"{stage.spec['lineage']}: '{stage.spec['method']}' learns from answers, and no row of data.train has"
                " one; give rows with answers, or another method that samples its own."
            )
        count = min(count or len(found), len(found) - alone)
    if count:
        found = found.first(count)
    if not len(found):
        raise InputError(
            f"{stage.spec['lineage']}: no rows left in the train or dev split; see the data report."
        )
    return found


def _weights(stage: Stage) -> Path:
    """Folder of the student's initial weights."""
    if stage.many("init"):
        return stage.input("init").parent / "init"
    return stage.input("base").parent / "model"


def _teacher_folder(spec: dict[str, Any]) -> str:
    """Folder of the teacher's weights beside its manifest: a student that teaches itself has its own start."""
    return "init" if spec["teacher"] == spec.get("init") else "model"


def _micro_batches(method: Method, stage: Stage) -> int:
    """Micro-batches per step and process, at most.

    Raises:
        InputError: the batch cannot be divided evenly among processes.
    """
    world = world_size()
    count = 0
    for size in method.part_sizes():
        if size % world:
            raise InputError(
                f"{stage.spec['lineage']}: a global batch of {size} rows cannot be split evenly over"
                f" {world} processes; choose a batch_size that {world} divides."
            )
        # by tokens, a micro-batch may have one row
        count += math.ceil(size / world / (1 if stage.max_tokens else stage.micro_batch))
    return count


def _publish(stage: Stage, job: Run, parameters: int) -> None:
    """Move outputs into place: folders, metrics, and the manifest last."""
    for name, best in job.keeper.best.items():
        if best.step is None:
            raise InputError(
                f"{job.title}: {best.measure} on dev was never a finite number; lower the learning rate."
            )
        target = stage.temporary(stage.outputs[name])
        kept = job.checkpoints.kept(best.step)
        shutil.copytree(kept, target, copy_function=_link_or_copy, dirs_exist_ok=True)
        stage.commit(stage.outputs[name])
    shutil.copyfile(job.journal.path, stage.outputs["metrics"])
    if job.share is not None:
        stage.say(
            f"{job.title}: {job.journal.flops:.4g} FLOPs, of {job.share:.4g} that its budget left"
        )
    files = stage.digests(stage.outputs["manifest"])
    _compare(job, files)
    spec = stage.spec
    stage.write_manifest(
        stage.outputs["manifest"],
        files,
        kind="model",
        **{key: spec[key] for key in ("lineage", "seed", "method", "model")},
        parameters=parameters,
        weights={name: files[f"{name}/{WEIGHTS}"] for name in job.keeper.best},
        best={b.measure: {"step": b.step, "value": b.value} for b in job.keeper.best.values()},
        steps=job.total,
        **spent(
            f"models/{spec['lineage']}/seed{spec['seed']}", job.journal.flops or 0, stage.inputs
        ),
        precision=job.precision,
    )


def _compare(job: Run, files: dict[str, str]) -> None:
    """Check that the published weights are those that were kept."""
    for name, best in job.keeper.best.items():
        assert best.step is not None
        folder = job.checkpoints.kept(best.step)
        kept = job.keeper.kept[folder.name].items()
        expected = {f"{name}{file.removeprefix(folder.name)}": digest for file, digest in kept}
        found = {file: digest for file, digest in files.items() if file.startswith(f"{name}/")}
        if found != expected:
            wrong = sorted({file for file, _ in found.items() ^ expected.items()})
            raise InputError(
                f"{folder}: changed after it was written ({', '.join(wrong)}); delete {job.checkpoints.folder} and"
                " start again, from the first step."
            )


def _link_or_copy(source: str, target: str) -> None:
    """Hard-link a file, so that it shares disk space with the kept weights; else copy it."""
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
