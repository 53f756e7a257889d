report: "../workflow/report/workflow.rst"


from takd.report import captions

# Name of each part: file, and where it stands in Snakemake's report. Entries are told apart by their labels and
# sorted by them within a category. A caption is named like the file that it describes.
PARTS = {
    "results": ("results.html", "1. Results", "Findings and scores", "page"),
    "results_csv": ("results.csv", "1. Results", "Findings and scores", "table (CSV)"),
    "chains": ("chains.svg", "1. Results", "ROUGE-L along the chains", "figure"),
    "learning": ("learning.svg", "2. Learning curves", "Scores on dev", "figure"),
    "training": (
        "training.svg",
        "2. Learning curves",
        "What the methods log",
        "figure",
    ),
    "samples": ("samples.html", "3. Generations", "Answers side by side", "page"),
    "data": ("data.html", "4. Data", "Rows, lengths, leaks", "page"),
    "costs": ("costs.html", "5. Costs", "Time and tokens", "page"),
    "costs_csv": ("costs.csv", "5. Costs", "Time and tokens", "table (CSV)"),
    "costs_figure": ("costs.svg", "5. Costs", "Minutes of each model", "figure"),
    "provenance": (
        "provenance.html",
        "6. Provenance",
        "Settings, versions, digests",
        "page",
    ),
}
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
            file=["scores.json", "generations.jsonl", "metrics.jsonl"],
        ),
        data="<results>/data/report/report.json",
        data_page="<results>/data/report/report.html",
        templates=sorted(f"{TEMPLATES}/{file.name}" for file in (ROOT / TEMPLATES).iterdir()),
    output:
        **{
            name: report(
                f"<results>/report/{file}",
                caption=f"../workflow/report/{Path(file).stem}.rst",
                category=category,
                labels={"part": part, "form": form},
            )
            for name, (file, category, part, form) in PARTS.items()
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
        spec=spec(EXPERIMENT.report_spec),
        code=code_digest("takd.report.build"),
        results=subpath(output.results, ancestor=2),
        facts=captions.facts(EXPERIMENT.report_spec()),
    shell:
        # the stage finds the models below two folders: hundreds of paths would be too long for a command
        "python3 workflow/scripts/build_report.py --spec {params.spec:q} --code {params.code}"
        " --input models={params.results:q}/models --input evaluations={params.results:q}/evaluations"
        " --input data_report={input.data:q} --input data_page={input.data_page:q}"
        " --output results={output.results:q} --output results_csv={output.results_csv:q}"
        " --output chains={output.chains:q} --output learning={output.learning:q}"
        " --output training={output.training:q} --output samples={output.samples:q}"
        " --output data={output.data:q} --output costs={output.costs:q}"
        " --output costs_csv={output.costs_csv:q} --output costs_figure={output.costs_figure:q}"
        " --output provenance={output.provenance:q} 2> {log:q}"
