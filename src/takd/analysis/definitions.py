"""Definition of each measure in a sentence; docs/measures.md has the formulas and sources."""

from takd.analysis.measures import Measure

OF_TEACHERS = {
    "perplexity": "exp of the mean −log p of the model’s own answers, p being {whose}",
    "reverse_kl": "Mean over the tokens of the model’s own answers of KL(model ‖ {whose}), in nats",
    "forward_kl": "Mean over the tokens of the teacher’s answers of KL({whose} ‖ model), in nats",
    "exposure_bias": "How much more the model errs on its own contexts than on those of {whose} (ExAccErr)",
}
DEFINITIONS = {
    "rougeL": "F1 of the longest common subsequence of stemmed words, the best over the references",
    "exact_match": "Share of answers that equal a reference but for white space at their ends",
    "normalised_match": "The same in lower case, without punctuation, with single spaces",
    "loss": "Mean −log of the model’s probability of a token of the references, in nats",
    "perplexity": "exp of the loss on the references",
    "calibration_error": "Mean distance of the likeliest token’s probability from its accuracy, in 15 bins",
    "distinct_1": "Different words among all words of the answers of one decoding seed, × 100",
    "distinct_2": "Different pairs of neighbouring words among all pairs, × 100",
    "distinct_4": "Different runs of four words among all such runs, × 100",
    "self_bleu": "How alike the answers of several decoding seeds to one prompt are: BLEU-4 among them",
    "response_tokens": "Tokens of an answer, the mean; neither more nor fewer is better",
    "cut_off": "Share of answers that reached the greatest length without an end",
    "judge": "Sum of the judge’s ratings of the answers over that of the references, × 100",
    **{
        f"{role}_{name}": text.format(whose=whose)
        for role, whose in (("direct", "its teacher"), ("first", "the first teacher of the chain"))
        for name, text in OF_TEACHERS.items()
    },
}


def definition(measure: Measure) -> str:
    """Definition of a measure; its title where there is none."""
    return DEFINITIONS.get(measure.name, measure.title)


def better(measure: Measure) -> str:
    """Arrow that shows which direction is better; empty where neither is."""
    return {"higher": "↑ better", "lower": "↓ better"}.get(measure.better, "")
