"""Checks of `evaluation`, and of the published results that `report` compares with."""

from typing import Any

from takd.data.letters import LETTERS, are_draws
from takd.experiment import controls, lineage
from takd.experiment.schema import suggest
from takd.experiment.validation.common import given_models, lineages_of, trained, vocabulary_size
from takd.experiment.yaml12 import Key, YamlFile

LISTED = 20_000  # beginnings of a response, of which each is read by each model


def check_seeds(file: YamlFile, settings: dict[str, Any]) -> None:
    """Check when enough training seeds are trained, where no list of them is given."""
    if not isinstance(seeds := settings["seeds"], dict):
        return
    until, key = seeds["until"], ("seeds", "until")
    if until["at_least"] >= until["at_most"]:
        text = f"is {until['at_most']}, but must be greater than at_least, which is {until['at_least']}."
        file.fault((*key, "at_most"), text)
    if seeds["values"] and len(seeds["values"]) < until["at_most"]:
        text = f"has {len(seeds['values'])} entries, but until.at_most is {until['at_most']}."
        file.fault(("seeds", "values"), text)
    sets = settings["evaluation"]["sets"]
    for at, name in enumerate(until["sets"] or []):
        if name not in sets:
            file.fault((*key, "sets", at), f"is not an evaluation set; {suggest(name, sets)}")
    measure = until["measure"]
    for name in until["sets"] or sets:
        if measure == "answer_accuracy" and name in sets and "answer" not in sets[name]:
            text = f"is {measure}, but evaluation.sets.{name} has no answer.pattern; leave it out of until.sets."
            file.fault((*key, "measure"), text)
    if not any(trained(settings)):
        file.fault(key, "has nothing to decide, as no model is trained; give a list of seeds.")


def check_evaluation(file: YamlFile, settings: dict[str, Any], complete: bool) -> None:
    """Check evaluation settings and published results.

    Args:
        file: the experiment file, which collects errors.
        settings: its content with defaults.
        complete: whether all chains are valid, so that all lineages are known.
    """
    evaluation = settings["evaluation"]
    seeds = evaluation["seeds"]
    if not evaluation["decoding"]["sample"] and len(seeds) > 1:
        file.fault(
            ("evaluation", "seeds"),
            f"has {len(seeds)} entries, but greedy decoding (evaluation.decoding.sample is false) gives the same text"
            f" for each; keep one, such as [{seeds[0]}].",
        )
    if evaluation["exact"]:
        _check_exact(file, settings)
    for at, seed in enumerate((evaluation["judge"] or {}).get("seeds") or []):
        if seed not in seeds:
            text = f"is {seed}, which is not in evaluation.seeds; there are: {seeds}."
            file.fault(("evaluation", "judge", "seeds", at), text)
    if not complete:
        return
    given = given_models(settings)
    of_chains = [name for chain in settings["chains"] for name in chain["models"]]
    names = [lineage.supervised(name) for name in of_chains if name not in given]
    for chain in map(controls.expanded, settings["chains"]):
        for name in lineages_of(settings, chain):
            names += lineage.prefixes(name)
    names = list(dict.fromkeys(names))
    for index, target in enumerate(settings["report"]["targets"]):
        for name, scores in target["scores"].items():
            key: Key = ("report", "targets", index, "scores", name)
            if name not in names:
                text = f"is not a lineage of this experiment; {suggest(name, names)}"
                file.fault(key, text)
            for each in scores:
                if each not in evaluation["sets"]:
                    text = f"is not an evaluation set; {suggest(each, evaluation['sets'])}"
                    file.fault((*key, each), text)


def _check_exact(file: YamlFile, settings: dict[str, Any]) -> None:
    """Check that all responses can be listed, and that the tokens are the letters where the data are."""
    data, key = settings["data"], ("evaluation", "exact")
    vocabulary, tokens = vocabulary_size(settings), data["max_length"] - data["max_prompt_length"]
    if vocabulary is None:
        file.fault(key, "is true, for which tokenizer.vocabulary has to say the number of tokens.")
    elif tokens > 0 and sum((vocabulary - 1) ** length for length in range(tokens)) > LISTED:
        file.fault(
            key,
            f"is true, but a response of up to {tokens} tokens out of {vocabulary} has more than {LISTED} beginnings,"
            " too many to list; take a tokenizer of a few words (tokenizer.words) and a smaller data.max_length.",
        )
    words = settings["tokenizer"].get("words", ())
    if any(map(are_draws, settings["evaluation"]["sets"].values())) and set(words) != set(LETTERS):
        text = f"is true and a set has the topic letters, for which tokenizer.words must be {list(LETTERS)}."
        file.fault(key, text)
