# A teacher's generations and outputs, computed once for all its students, and only if a student reads them.


# A response depends, apart from rounding, only on its prompt: the number of parts only sets how many GPUs can share the
# work.
rule generate:
    input:
        teacher="<results>/models/{teacher}/seed{seed}/manifest.json",
        prompts="<results>/data/train/manifest.json",
        tokenizer="<results>/data/tokenizer/manifest.json",
    output:
        answers="<results>/teachers/{teacher}/seed{seed}/generations/part{part}of{parts}/answers.jsonl",
        metrics="<results>/teachers/{teacher}/seed{seed}/generations/part{part}of{parts}/metrics.jsonl",
        manifest="<results>/teachers/{teacher}/seed{seed}/generations/part{part}of{parts}/manifest.json",
    log:
        "<logs>/teachers/{teacher}/seed{seed}/generations/part{part}of{parts}.log",
    priority: 15  # after the heads of chains, before the students, some of which depend on this
    conda:
        "../envs/conda.yaml"
    resources:
        mem_mb=4000,
        runtime=WEEK,
        processes=1,
        deterministic=0,
    params:
        **parameters("generate", "takd.teacher_cache.responses"),
    shell:
        command("generate", "deterministic", "runtime")


rule generations:
    input:
        piece=collect(
            "<results>/teachers/{{teacher}}/seed{{seed}}/generations/part{part}of{parts}/manifest.json",
            part=range(1, EXPERIMENT.shards + 1),
            parts=EXPERIMENT.shards,
        ),
        teacher="<results>/models/{teacher}/seed{seed}/manifest.json",
        prompts="<results>/data/train/manifest.json",
        tokenizer="<results>/data/tokenizer/manifest.json",
    output:
        dataset=directory("<results>/teachers/{teacher}/seed{seed}/generations/dataset"),
        manifest="<results>/teachers/{teacher}/seed{seed}/generations/manifest.json",
    log:
        "<logs>/teachers/{teacher}/seed{seed}/generations.log",
    priority: 15
    localrule: True
    conda:
        "../envs/conda.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        **parameters("generations", "takd.teacher_cache.merge"),
    shell:
        command("join_generations")


rule teacher_outputs:
    input:
        teacher="<results>/models/{teacher}/seed{seed}/manifest.json",
        data=read_by_teacher,
        tokenizer="<results>/data/tokenizer/manifest.json",
    output:
        outputs="<results>/teachers/{teacher}/seed{seed}/outputs/{read}/{kind}/outputs.safetensors",
        metrics="<results>/teachers/{teacher}/seed{seed}/outputs/{read}/{kind}/metrics.jsonl",
        manifest="<results>/teachers/{teacher}/seed{seed}/outputs/{read}/{kind}/manifest.json",
    log:
        "<logs>/teachers/{teacher}/seed{seed}/outputs/{read}/{kind}.log",
    priority: 15
    conda:
        "../envs/conda.yaml"
    resources:
        mem_mb=4000,
        runtime=WEEK,
        processes=1,
        micro_batch=64,
        max_tokens=0,
        deterministic=0,
    params:
        **parameters("outputs", "takd.teacher_cache.outputs"),
    shell:
        command("write_outputs", "micro_batch", "max_tokens", "deterministic", "runtime")
