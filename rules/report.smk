report: "../workflow/report/workflow.rst"


# The report as one entry of Snakemake's. It is so marked as an input of rules that have no parameters, not as the output
# below: Snakemake shows beside each entry the parameters of its rule, and those below are pages of JSON.
SITE = report(
    "<results>/report",
    category="Report",
    labels={"file": "all pages"},
    htmlindex="index.html",
)


rule report:
    input:
        manifests=collect(
            "<results>/models/{node.lineage}/seed{node.seed}/manifest.json",
            node=EXPERIMENT.nodes,
        ),
        metrics=collect(
            "<results>/models/{node.lineage}/seed{node.seed}/metrics.jsonl",
            node=EXPERIMENT.trainings,
        ),
        evaluations=collect(
            "<results>/evaluations/{node.lineage}/seed{node.seed}/{set}/{file}",
            node=EXPERIMENT.nodes,
            set=EXPERIMENT.sets,
            file=MEASURED,
        ),
        teacher_cache=collect(
            "<results>/teachers/{entry.manifest}",
            entry=EXPERIMENT.teacher_cache,
        ),
        teacher_cache_metrics=collect(
            "<results>/teachers/{file}",
            file=[file for entry in EXPERIMENT.teacher_cache for file in entry.logs],
        ),
        # the rule writes the cards below the models, where the stage finds them
        cards=collect(
            "<results>/models/{node.lineage}/seed{node.seed}/card.md",
            node=EXPERIMENT.nodes,
        ),
        data="<results>/data/report/report.json",
        templates=sorted(map(str, (PACKAGE / "pages/templates").iterdir())),
    output:
        site=directory("<results>/report"),
    log:
        "<logs>/report.log",
    localrule: True
    conda:
        "../envs/conda.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        spec=spec("report"),
        code=code_digest("takd.report.build"),
        inputs=below_results(
            "models", "evaluations", "teachers", data_report="data/report/report.json"
        ),
        outputs=written,
    shell:
        command("build_report")
