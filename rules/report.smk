report: "../workflow/report/workflow.rst"


from takd.experiment import captions
from takd.experiment.report_files import PARTS

TEMPLATES = "src/takd/report/templates"


rule report:
    input:
        manifests=collect(
            "<results>/models/{node.lineage}/seed{node.seed}/manifest.json",
            node=EXPERIMENT.nodes,
        ),
        metrics=collect(
            "<results>/models/{node.lineage}/seed{node.seed}/metrics.jsonl",
            node=EXPERIMENT.nodes,
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
        data="<results>/data/report/report.json",
        data_page="<results>/data/report/report.html",
        templates=sorted(f"{TEMPLATES}/{file.name}" for file in (ROOT / TEMPLATES).iterdir()),
    output:
        **{
            name: report(
                f"<results>/report/{part.file}",
                caption=f"../workflow/report/{part.stem}.rst",
                category=part.category,
                labels={"part": part.about, "form": part.form},
            )
            for name, part in PARTS.items()
        },
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
        results=subpath(output.results, ancestor=2),
        outputs=written,
        facts=captions.facts(specs.report(EXPERIMENT)),
    shell:
        # the stage finds the models below two folders: hundreds of paths would be too long for a command
        "python3 workflow/scripts/build_report.py --spec {params.spec:q} --code {params.code}"
        " --input models={params.results:q}/models --input evaluations={params.results:q}/evaluations"
        " --input teachers={params.results:q}/teachers"
        " --input data_report={input.data:q} --input data_page={input.data_page:q}"
        " {params.outputs} 2> {log:q}"
