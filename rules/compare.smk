# Runs only on request, with the experiments to compare with: compare --config experiment=NAME with=OTHER,ANOTHER

try:
    comparison.check(EXPERIMENT, COMPARED, MEASURED, CONFIG)
except InputError as error:
    sys.exit(f"Error: {error}")


if COMPARED:

    COMPARISON = f"<results>/comparison/{comparison.folder([each.name for each in COMPARED])}"

    # Snakemake's report shows the comparison beside the experiment's own. As in report.smk, the files are inputs here.
    rule compare:
        input:
            SITE,
            [
                report(
                    f"{COMPARISON}/{part.file}",
                    caption=f"../workflow/report/{Path(part.file).stem}.rst",
                    category="Comparison",
                    labels={"part": part.about, "form": part.form},
                )
                for part in comparison.PARTS.values()
            ],
        localrule: True
        params:
            facts=comparison.facts([EXPERIMENT, *COMPARED]),

    # No rule makes the files of the other experiments: they are only read, never trained.
    rule build_comparison:
        input:
            # its time stamp says nothing: what the comparison reads is named below
            report=ancient(rules.report.output.site),
            results=lambda wildcards: [
                file
                for each in (asked_for(), *COMPARED)
                for file in comparison.files(each, MEASURED)
            ],
            templates=rules.report.input.templates,
        output:
            **{name: f"{COMPARISON}/{part.file}" for name, part in comparison.PARTS.items()},
        log:
            COMPARISON.replace("<results>", "<logs>") + ".log",
        localrule: True
        conda:
            "../envs/conda.yaml"
        resources:
            mem_mb=4000,
            runtime=60,
        params:
            spec=lambda wildcards: canonical_json(comparison.spec(asked_for(), COMPARED, MEASURED)),
            code=code_digest("takd.report.compare"),
            inputs=as_options(
                "input",
                [("results", comparison.results(each)) for each in (EXPERIMENT, *COMPARED)],
            ),
            outputs=written,
        shell:
            command("compare")

else:

    rule compare:
        input:
            lambda wildcards: sys.exit(f"Error: {comparison.NOTHING_NAMED}"),
