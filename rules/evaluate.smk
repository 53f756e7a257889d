# Files of each evaluation: its results, the likelihoods, and the judge's ratings if the experiment has a judge.
MEASURED = [
    *["scores.json", "generations.jsonl", "metrics.jsonl"],
    *[f"likelihoods/{file}" for file in ("likelihoods.json", "prompts.jsonl", "metrics.jsonl")],
    *(["judge/judge.json"] if EXPERIMENT.settings["evaluation"]["judge"] else []),
]


rule evaluate:
    input:
        model="<results>/models/{lineage}/seed{seed}/manifest.json",
        data="<results>/data/{set}/manifest.json",
        tokenizer="<results>/data/tokenizer/manifest.json",
    output:
        scores="<results>/evaluations/{lineage}/seed{seed}/{set}/scores.json",
        generations="<results>/evaluations/{lineage}/seed{seed}/{set}/generations.jsonl",
        answers="<results>/evaluations/{lineage}/seed{seed}/{set}/answers.jsonl",
        metrics="<results>/evaluations/{lineage}/seed{seed}/{set}/metrics.jsonl",
    log:
        "<logs>/evaluations/{lineage}/seed{seed}/{set}.log",
    conda:
        "../envs/conda.yaml"
    resources:
        mem_mb=4000,
        runtime=WEEK,
        processes=1,
        deterministic=0,
    params:
        **parameters("evaluate", "takd.evaluation.evaluate"),
    shell:
        command("evaluate", "processes", "deterministic", "runtime")


rule likelihoods:
    input:
        unpack(likelihoods_inputs),
        model="<results>/models/{lineage}/seed{seed}/manifest.json",
        answers="<results>/evaluations/{lineage}/seed{seed}/{set}/answers.jsonl",
        data="<results>/data/{set}/manifest.json",
        tokenizer="<results>/data/tokenizer/manifest.json",
    output:
        likelihoods="<results>/evaluations/{lineage}/seed{seed}/{set}/likelihoods/likelihoods.json",
        prompts="<results>/evaluations/{lineage}/seed{seed}/{set}/likelihoods/prompts.jsonl",
        metrics="<results>/evaluations/{lineage}/seed{seed}/{set}/likelihoods/metrics.jsonl",
    log:
        "<logs>/evaluations/{lineage}/seed{seed}/{set}/likelihoods.log",
    conda:
        "../envs/conda.yaml"
    resources:
        mem_mb=4000,
        runtime=WEEK,
        processes=1,
        micro_batch=64,
        deterministic=0,
    params:
        **parameters("likelihoods", "takd.evaluation.likelihoods"),
    shell:
        command("likelihoods", "processes", "micro_batch", "deterministic", "runtime")


if EXPERIMENT.settings["evaluation"]["judge"]:

    # A local rule, since the nodes of a cluster often cannot reach the endpoint.
    rule judge:
        input:
            generations="<results>/evaluations/{lineage}/seed{seed}/{set}/generations.jsonl",
        output:
            judge="<results>/evaluations/{lineage}/seed{seed}/{set}/judge/judge.json",
            judgements="<results>/evaluations/{lineage}/seed{seed}/{set}/judge/judgements.jsonl",
        log:
            "<logs>/evaluations/{lineage}/seed{seed}/{set}/judge.log",
        localrule: True
        conda:
            "../envs/conda.yaml"
        resources:
            mem_mb=4000,
            runtime=WEEK,
        params:
            **parameters("judge", "takd.evaluation.judge"),
        shell:
            command("judge", "runtime", online=True)
