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
        content=content("tokenizer"),
        spec=placed("tokenizer"),
        code=code_digest("takd.data.tokenizer"),
    shell:
        "python3 workflow/scripts/prepare_tokenizer.py --spec {params.spec:q} --code {params.code}"
        " --output tokenizer={output.tokenizer:q} --output manifest={output.manifest:q} 2> {log:q}"


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
        content=content("data"),
        spec=placed("data"),
        code=code_digest("takd.data.prepare"),
    shell:
        "python3 workflow/scripts/prepare_data.py --spec {params.spec:q} --code {params.code}"
        " --threads {threads} --input tokenizer={input.tokenizer:q}"
        " --output dataset={output.dataset:q} --output manifest={output.manifest:q} 2> {log:q}"


rule data_report:
    input:
        data=collect("<results>/data/{split}/manifest.json", split=EXPERIMENT.splits),
    output:
        summary="<results>/data/report/report.json",
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
        spec=spec("data_report"),
        code=code_digest("takd.data.summary"),
        inputs=named,
    shell:
        "HF_HUB_OFFLINE=1 python3 workflow/scripts/summarise_data.py --spec {params.spec:q}"
        " --code {params.code} {params.inputs}"
        " --output report={output.summary:q} --output page={output.page:q} 2> {log:q}"


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
        content=content("base"),
        spec=placed("base"),
        code=code_digest("takd.models.starting_weights"),
    shell:
        "python3 workflow/scripts/prepare_base.py --spec {params.spec:q} --code {params.code}"
        " --input tokenizer={input.tokenizer:q}"
        " --output model={output.model:q} --output manifest={output.manifest:q} 2> {log:q}"
