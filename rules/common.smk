"""Load the experiment, and define what the rules have in common.

A stage depends on three things only (docs/staleness.md): `spec`, its settings as canonical JSON; `code`, a digest of
the modules that it imports; and small files that are compared by content. Anything that changes results by no more
than rounding is a resource: it may differ between machines and attempts and causes no rerun.
"""

import gc
import os
import re
import sys
from functools import partial
from pathlib import Path
from shlex import quote

# searching what Snakemake has imported for garbage takes a fifth of a start, and finds none
gc.freeze()

# the workflow's own folder; `workflow.basedir` is another one where a user's Snakefile declares this as a module
HOME = Path(str(workflow.current_basedir)).parent
if not (HOME / "src/takd").is_dir():
    sys.exit(
        "Error: takd runs from a clone of its repository, since its stages need the package in it: git clone it, and write"
        ' snakefile: "CLONE/workflow/Snakefile" in the module.'
    )
# where the user works: results, the user's experiments, and the data that they name
ROOT = Path.cwd()
WEEK = 7 * 24 * 60  # minutes: no limit where the profile sets none
sys.path.insert(0, str(HOME / "src"))

if set("{}\n") & set(str(HOME)):
    sys.exit(
        f"Error: {str(HOME)!r}: Snakemake fills in what stands in braces in its own path; move the repository to a"
        " folder without {, } and line breaks."
    )

from takd.experiment import comparison, lineage, looks, specs
from takd.preflight import amounts, planned_jobs
from takd.runtime import failures, slurm_executor_patch, store
from takd.runtime.checkpoints import sweep
from takd.runtime.code_digest import code_digest
from takd.runtime.digests import canonical_json, without_places
from takd.runtime.errors import InputError
from takd.watching import track

# Stages run under the interpreter that runs Snakemake. Its path is not part of the commands, whose text
# Snakemake compares: moving the environment should cause no rerun.
os.environ.update(PATH=os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()]))

if STORE := config.get("store"):
    # by the environment: a path is no reason to run anything again
    os.environ[store.VARIABLE] = str(Path(str(STORE)).expanduser().absolute())

# Jobs find the scripts through the environment: a path in their command would make them run again in a moved clone.
os.environ.update(TAKD_HOME=str(HOME))
PACKAGE = Path(os.path.relpath(HOME)) / "src/takd"
SCRIPTS = "workflow/scripts" if HOME == ROOT else '"$TAKD_HOME"/workflow/scripts'

slurm_executor_patch.keep_jobs()
FAILURES = failures.listen()
planned_jobs.listen(workflow)  # only a dry run prints its list

for NAME, VALUE in config.items():
    if isinstance(VALUE, dict | list):
        sys.exit(
            f"Error: --config {NAME}=… is read as YAML, as a list or a mapping; put the text in quotes twice, as in"
            f""" {NAME}='"text"'."""
        )
CONFIG = {
    name: str(value)
    for name, value in config.items()
    if name not in ("experiment", comparison.KEY, "store")
}
try:
    amounts.check_profile(workflow.resource_settings)
    EXPERIMENT, *COMPARED = comparison.load_all(
        ROOT, config["experiment"], config.get(comparison.KEY), CONFIG
    )
    COMPARED = [looks.asked_for(each) for each in COMPARED]
except InputError as error:
    sys.exit(f"Error: {error}")


def check_start():
    """Check the machine and the inputs before the first job."""
    from takd.preflight import start

    try:
        for warning in start.check(EXPERIMENT, workflow):
            print(warning, file=sys.stderr)
    except InputError as error:
        sys.exit(f"Error: {error}")
    track.start(EXPERIMENT, CONFIG)


def sum_up(log):
    """End with the failures, so that they are last on the console, and the log that Snakemake would name next."""
    track.end()
    if FAILURES.left:
        sys.exit(FAILURES.summary(log))


def clean_up():
    """End a run that succeeded."""
    track.end()
    sweep(ROOT / "results" / EXPERIMENT.name)


# not while the rules are read: a dry run needs neither data nor Slurm. Snakemake starts the processes of jobs, also on a
# cluster, with --no-hooks: `check_start` runs once, before the first job.
onstart:
    check_start()


onerror:
    sum_up(log)


onsuccess:
    clean_up()


if not workflow.modifier.is_main_snakefile():
    # Snakemake leaves out the hooks of a module; these protect the user's GPU time and results
    workflow._onstart = lambda log: check_start()
    workflow._onerror = sum_up
    workflow._onsuccess = lambda log: clean_up()


pathvars:
    results=f"results/{EXPERIMENT.name}",
    logs=f"logs/{EXPERIMENT.name}",


wildcard_constraints:
    split="|".join(map(re.escape, EXPERIMENT.splits)),
    read="train|corpus|generations",
    kind="top_k|hidden",
    part=r"\d+",
    parts=r"\d+",
    seeds=r"\d+",
    set="|".join(map(re.escape, EXPERIMENT.sets)),
    model=lineage.MODEL_PATTERN,
    student=lineage.MODEL_PATTERN,
    method="|".join(EXPERIMENT.methods),
    teacher=lineage.pattern(EXPERIMENT.methods),
    lineage=lineage.pattern(EXPERIMENT.methods),
    seed=r"\d+",


def settings_of(stage, wildcards):
    """Settings of a stage for the wildcards of its rule."""
    if stage == "train":
        return specs.train(EXPERIMENT, trained(wildcards), int(wildcards.seed))
    experiment = asked_for() if stage == "report" else EXPERIMENT
    return specs.of(experiment, stage, **wildcards)


def parameters(stage, *modules, places=False, **own):
    """Give the parameters of a stage: its settings, a digest of its code, and its files as options.

    Args:
        places: whether the settings say where data or weights lie. Equal ones may lie elsewhere the next time: Snakemake
            compares `content`, without places, and not `spec`, as no parameter that depends on `input` is compared.
        own: parameters in place of these.
    """

    def spec(wildcards):
        return canonical_json(settings_of(stage, wildcards))

    settings = {"spec": spec}
    if places:
        settings = {
            "content": lambda wildcards: canonical_json(
                without_places(settings_of(stage, wildcards))
            ),
            "spec": lambda wildcards, input: spec(wildcards),
        }
    return {**settings, "code": code_digest(*modules), "inputs": named, "outputs": written, **own}


def command(script, *resources, online=False):
    """Text of the command that starts a stage, with those of the rule's resources that the stage takes.

    Its `params` are those of `parameters`.
    """
    threads = "{threads}"
    if "processes" in resources:
        threads = "$((({threads} + {resources.processes} - 1) / {resources.processes}))"
    options = [f"--{name.replace('_', '-')} {{resources.{name}}}" for name in resources]
    words = [
        *([] if online else ["HF_HUB_OFFLINE=1"]),
        f"python3 {SCRIPTS}/{script}.py --spec {{params.spec:q}} --code {{params.code}}",
        f"--threads {threads}",
        *options,
        "{params.inputs} {params.outputs} 2> {log:q}",
    ]
    return " ".join(words)


def likelihoods_inputs(wildcards):
    """Manifests and answers of a model's teachers, each teacher once: the direct one may also be the first."""
    inputs, seen = {}, []
    for role, teacher in settings_of("likelihoods", wildcards)["teachers"].items():
        if teacher not in seen:
            inputs[role] = model_manifest(*teacher)
            inputs[f"{role}_answers"] = (
                "<results>/evaluations/{}/seed{}/{{set}}/answers.jsonl".format(*teacher)
            )
        seen.append(teacher)
    return inputs


def read_by_teacher(wildcards):
    """Manifest of the data for a teacher's outputs: a split, or its own generations."""
    if wildcards.read == "generations":
        return "<results>/teachers/{teacher}/seed{seed}/generations/manifest.json"
    return "<results>/data/{read}/manifest.json"


def trained(wildcards):
    """Lineage of the model that a training produces."""
    if "model" in wildcards.keys():
        return lineage.alone(wildcards.model)
    return f"{wildcards.teacher}__{wildcards.student}-{wildcards.method}"


def model_manifest(model, seed):
    """Manifest of a trained model, by its lineage and training seed."""
    return f"<results>/models/{model}/seed{seed}/manifest.json"


def training_log(wildcards):
    """Log of a model's training; none of a model that is taken as it is."""
    log = "<results>/models/{lineage}/seed{seed}/metrics.jsonl"
    return [] if lineage.is_given(wildcards.lineage) else log


def training_inputs(wildcards):
    """Inputs of every training: the data, and the model whose cost is the budget, where a chain's is."""
    found = EXPERIMENT.reference(trained(wildcards), int(wildcards.seed))
    data = {name: f"<results>/data/{name}/manifest.json" for name in ("tokenizer", "train", "dev")}
    return {**data, "reference": model_manifest(*found)} if found else data


def sft_inputs(wildcards):
    """Inputs of supervised fine-tuning: the starting weights and the data."""
    base = f"<results>/base/{lineage.own(wildcards.model)}/manifest.json"
    return {"base": base, **training_inputs(wildcards)}


def distill_inputs(wildcards):
    """Inputs of distillation: the teacher, the student's starting weights, the data, and precomputed outputs."""
    student = trained(wildcards)
    seed = lineage.teacher_seed(wildcards.teacher, int(wildcards.seed), EXPERIMENT.seeds, student)
    inputs = {"teacher": model_manifest(wildcards.teacher, seed), **training_inputs(wildcards)}
    if EXPERIMENT.start_of(student) == "sft":
        inputs["init"] = model_manifest(lineage.supervised(wildcards.student), wildcards.seed)
    else:
        inputs["base"] = f"<results>/base/{lineage.own(wildcards.student)}/manifest.json"
    settings = EXPERIMENT.training(wildcards.student, wildcards.method)
    if "corpus" in EXPERIMENT.splits and settings.get("lm_weight", 0) > 0:
        inputs["corpus"] = "<results>/data/corpus/manifest.json"
    for name, place in EXPERIMENT.cached_inputs(student).items():
        inputs[name] = f"<results>/teachers/{wildcards.teacher}/seed{seed}/{place}/manifest.json"
    return inputs


def as_options(option, pairs):
    """Format names and paths as options of a stage."""
    return " ".join(f"--{option} {quote(f'{name}={path}')}" for name, path in pairs)


def named(wildcards, input):
    """Format the inputs as options of a stage. Snakemake compares the inputs, not this parameter."""
    several = {name: [path] if isinstance(path, str) else path for name, path in input.items()}
    return as_options("input", [(name, path) for name in several for path in several[name]])


def below_results(*names, **files):
    """Format folders and files of the results as inputs: hundreds of paths would be too long for a command."""
    paths = {**{name: name for name in names}, **files}.items()
    return as_options(
        "input", [(name, f"results/{EXPERIMENT.name}/{path}") for name, path in paths]
    )


def written(wildcards, output):
    """Format the outputs as options of a stage."""
    return as_options("output", output.items())


# Files of each model.
MANIFEST = "<results>/models/{node.lineage}/seed{node.seed}/manifest.json"
LOG = "<results>/models/{node.lineage}/seed{node.seed}/metrics.jsonl"
CARD = "<results>/models/{node.lineage}/seed{node.seed}/card.md"
SCORES = "<results>/evaluations/{node.lineage}/seed{node.seed}/{set}/{file}"
