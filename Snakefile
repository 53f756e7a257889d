"""Distil large language models into small ones, through teacher assistants.

    snakemake --profile profiles/local                             the experiment that config/config.yaml names
    snakemake --profile profiles/local --config experiment=NAME    the one in config/experiments/NAME.yaml
    snakemake --profile profiles/slurm                             each stage a job on a cluster
    snakemake --profile profiles/local compare --config experiment=NAME with=OTHER     two experiments side by side

The experiment says what is trained, the profile what on; docs/workflow.md tells how a run proceeds.
"""

from snakemake.utils import min_version

min_version("9.27")


configfile: "config/config.yaml"


include: "rules/common.smk"
include: "rules/data.smk"
include: "rules/generate.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/looks.smk"
include: "rules/cards.smk"
include: "rules/report.smk"
include: "rules/compare.smk"


rule all:
    default_target: True
    input:
        SITE,
        of_nodes(CARD),


# The parts of a run, each of which can be asked for by its name.


rule prepare:
    input:
        collect("<results>/data/{split}/manifest.json", split=EXPERIMENT.splits),
        rules.data_report.output,


rule models:
    input:
        of_nodes(MANIFEST),


rule scores:
    input:
        of_nodes(SCORES, set=EXPERIMENT.sets, file=MEASURED),


rule cards:
    input:
        of_nodes(CARD),
