# Where training seeds are added until each question is decided (docs/measures.md), a checkpoint after each of them reads
# the scores of the first `seeds` seeds, and what reads the results of all models follows its decision.


def asked_for():
    """Return the experiment with the training seeds that the decisions ask for so far."""
    return looks.asked_for(
        EXPERIMENT, lambda seeds: checkpoints.look.get(seeds=seeds).output.decision
    )


def of_nodes(pattern, attribute="nodes", **more):
    """Make an input: the files of all models, with the training seeds that are asked for."""
    if not EXPERIMENT.looks:
        return collect(pattern, node=getattr(EXPERIMENT, attribute), **more)
    return lambda wildcards: collect(pattern, node=getattr(asked_for(), attribute), **more)


def of_first(pattern, attribute="nodes", **more):
    """Make an input: the files of all models with the first `seeds` training seeds."""
    return lambda wildcards: collect(
        pattern,
        node=getattr(looks.first(EXPERIMENT, int(wildcards.seeds)), attribute),
        **more,
    )


if EXPERIMENT.looks:

    checkpoint look:
        input:
            manifests=of_first(MANIFEST),
            metrics=of_first(LOG, "trainings"),
            evaluations=of_first(
                SCORES,
                set=EXPERIMENT.settings["until"]["sets"] or EXPERIMENT.sets,
                file=[file for file in MEASURED if file != comparison.JUDGE],
            ),
        output:
            decision="<results>/looks/seeds{seeds}/decision.json",
        log:
            "<logs>/looks/seeds{seeds}.log",
        localrule: True
        conda:
            "../envs/conda.yaml"
        resources:
            mem_mb=4000,
            runtime=60,
        params:
            **parameters(
                "look", "takd.analysis.look", inputs=below_results("models", "evaluations")
            ),
        shell:
            command("look")
