rule tokenizer:
    output:
        tokenizer=directory("<results>/data/tokenizer/tokenizer"),
        manifest="<results>/data/tokenizer/manifest.json",
    log:
        "<logs>/data/tokenizer.log",
    priority: 30  # everything depends on the data; the longest training should not start last
    localrule: True  # may download, which compute nodes often cannot
    conda:
        "../envs/conda.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        **parameters("tokenizer", "takd.data.tokenizer", places=True),
    shell:
        command("prepare_tokenizer", online=True)


rule data:
    input:
        tokenizer="<results>/data/tokenizer/manifest.json",
    output:
        dataset=directory("<results>/data/{split}/dataset"),
        manifest="<results>/data/{split}/manifest.json",
    log:
        "<logs>/data/{split}.log",
    localrule: True
    conda:
        "../envs/conda.yaml"
    resources:
        mem_mb=8000,
        runtime=240,
    params:
        **parameters("data", "takd.data.prepare", places=True),
    shell:
        command("prepare_data", online=True)


rule data_report:
    input:
        data=collect("<results>/data/{split}/manifest.json", split=EXPERIMENT.splits),
    output:
        report="<results>/data/report/report.json",
        page="<results>/data/report/report.html",
    log:
        "<logs>/data/report.log",
    localrule: True
    conda:
        "../envs/conda.yaml"
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        **parameters("data_report", "takd.data.summary"),
    shell:
        command("summarise_data")


rule base:
    input:
        tokenizer="<results>/data/tokenizer/manifest.json",
    output:
        model=directory("<results>/base/{model}/model"),
        manifest="<results>/base/{model}/manifest.json",
    log:
        "<logs>/base/{model}.log",
    priority: 25  # before any training: it detects weights and tokenizers that do not match
    localrule: True  # may download
    conda:
        "../envs/conda.yaml"
    resources:
        mem_mb=16000,
        runtime=240,
    params:
        **parameters("base", "takd.models.starting_weights", places=True),
    shell:
        command("prepare_base", online=True)


# A model that is there (trained: true) is taken as it is, in place of a training.
use rule base as given with:
    output:
        model=directory(f"<results>/models/{{model}}-given/seed{lineage.GIVEN_SEED}/model"),
        manifest=f"<results>/models/{{model}}-given/seed{lineage.GIVEN_SEED}/manifest.json",
    log:
        f"<logs>/models/{{model}}-given/seed{lineage.GIVEN_SEED}.log",
    params:
        **parameters("given", "takd.models.starting_weights", places=True),
