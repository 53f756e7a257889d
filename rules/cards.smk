# The card is also written into the model's folder, as README.md (docs/workflow.md). Snakemake allows no output inside
# another rule's output, so that copy is not declared. A training deletes it with its folder; since the training log
# contains times, the card is always rewritten after a training, even if the model is the same.


rule card:
    input:
        manifest="<results>/models/{lineage}/seed{seed}/manifest.json",
        metrics=training_log,
        evaluations=collect(
            "<results>/evaluations/{{lineage}}/seed{{seed}}/{set}/{file}",
            set=EXPERIMENT.sets,
            file=MEASURED,
        ),
        template=str(PACKAGE / "model_cards/card.md.jinja"),
    output:
        card="<results>/models/{lineage}/seed{seed}/card.md",
    log:
        "<logs>/models/{lineage}/seed{seed}/card.log",
    localrule: True
    conda:
        "../envs/conda.yaml"
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        **parameters("card", "takd.model_cards.card", inputs=below_results("models", "evaluations")),
    shell:
        command("write_card")
