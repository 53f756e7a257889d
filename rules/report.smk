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
        manifests=of_nodes(MANIFEST),
        metrics=of_nodes(LOG, "trainings"),
        evaluations=of_nodes(SCORES, set=EXPERIMENT.sets, file=MEASURED),
        teacher_cache=of_nodes("<results>/teachers/{node.manifest}", "teacher_cache"),
        teacher_cache_metrics=of_nodes("<results>/teachers/{node}", "teacher_logs"),
        # the rule writes the cards below the models, where the stage finds them
        cards=of_nodes(CARD),
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
        **parameters(
            "report",
            "takd.report.build",
            inputs=below_results(
                "models", "evaluations", "teachers", data_report="data/report/report.json"
            ),
        ),
    shell:
        command("build_report")
