# What a training takes of a profile besides `mem_mb` and `runtime`, and the values where the profile sets none.
TRAINING = dict(
    nodes=1,
    processes=1,
    micro_batch=64,
    max_tokens=0,
    gradient_checkpointing=0,
    compile=0,
    deterministic=0,
)


# A training stops after 95 % of `runtime`, with a checkpoint and a non-zero exit code, so that the next attempt
# resumes. `threads` are those of a node, shared by its `processes`; each process uses one GPU where there is one.


rule sft:
    input:
        unpack(sft_inputs),
    output:
        model=directory("<results>/models/{model}-sft/seed{seed}/model"),
        init=directory("<results>/models/{model}-sft/seed{seed}/init"),
        metrics="<results>/models/{model}-sft/seed{seed}/metrics.jsonl",
        manifest="<results>/models/{model}-sft/seed{seed}/manifest.json",
    log:
        "<logs>/models/{model}-sft/seed{seed}.log",
    priority: 10
    conda:
        "../envs/conda.yaml"
    resources:
        **TRAINING,
        mem_mb=4000,
        runtime=WEEK,
    params:
        **parameters("train", "takd.training.train", "takd.methods.sft"),
    shell:
        command("train", *TRAINING, "runtime")


# The head of a chain is trained once for all seeds. It is usually the largest model, and the others depend on it: it
# starts first, and a profile can give it more resources.
use rule sft as teacher with:
    wildcard_constraints:
        model="|".join(map(re.escape, EXPERIMENT.heads)) or "(?!)",
        seed=str(EXPERIMENT.seeds[0]),
    priority: 20


ruleorder: teacher > sft


# One rule for chains of any length: its input `teacher` is its own output for the previous model of the chain. There is
# a copy for each method (distill_minillm and so on), so that a profile can set the resources of each method.
for METHOD in EXPERIMENT.methods:

    rule:
        name:
            f"distill_{METHOD}"
        input:
            unpack(distill_inputs),
        output:
            model=directory("<results>/models/{teacher}__{student}-{method}/seed{seed}/model"),
            metrics="<results>/models/{teacher}__{student}-{method}/seed{seed}/metrics.jsonl",
            manifest="<results>/models/{teacher}__{student}-{method}/seed{seed}/manifest.json",
        log:
            "<logs>/models/{teacher}__{student}-{method}/seed{seed}.log",
        wildcard_constraints:
            method=METHOD,
        priority: 10
        conda:
            "../envs/conda.yaml"
        resources:
            **TRAINING,
            mem_mb=4000,
            runtime=WEEK,
        params:
            **parameters("train", "takd.training.train", f"takd.methods.{METHOD}"),
        shell:
            command("train", *TRAINING, "runtime")
