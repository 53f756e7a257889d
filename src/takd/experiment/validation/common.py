"""Names and settings that several checks and the experiment need: methods, hops, settings of a training."""

from collections.abc import Iterator, Mapping
from typing import Any

from takd.experiment import lineage
from takd.experiment.lineage import SUPERVISED
from takd.experiment.schema import load_schema

LISTED = 10_000  # largest number whose divisors a message lists


def distillation_methods() -> list[str]:
    """Return the methods of the schema that have a teacher."""
    return [name for name in load_schema()["$defs"]["methods"]["properties"] if name != SUPERVISED]


def by_hop(chain: dict[str, Any]) -> list[list[str]]:
    """Return the method of every hop, for each entry of a chain's `methods`; a model alone has no hop."""
    hops = len(chain["models"]) - 1
    if not hops:
        return [[]]
    return [[entry] * hops if isinstance(entry, str) else entry for entry in chain["methods"]]


def training_settings(settings: Mapping[str, Any], model: str, method: str) -> dict[str, Any]:
    """Return a method's settings for a model; its own take precedence over those for all models."""
    own = own_training(settings, model).get(method, {})
    resolved = {**settings["training"][method], **own}
    if resolved.get("rollouts_per_round", 0) is None:
        resolved["rollouts_per_round"] = resolved["batch_size"]
    return resolved


def own_training(settings: Mapping[str, Any], model: str) -> dict[str, dict[str, Any]]:
    """Return the settings that a model has for itself, by method: those of a sweep take precedence."""
    own = settings["models"][lineage.own(model)].get("training", {})
    swept = settings.get("arms", {}).get(lineage.arm(model), {})
    return {name: {**own.get(name, {}), **swept.get(name, {})} for name in {**own, **swept}}


def given_models(settings: Mapping[str, Any]) -> list[str]:
    """Return the models that are there and are taken as they are."""
    return [name for name, model in settings["models"].items() if model["trained"]]


def lineages_of(settings: Mapping[str, Any], chain: dict[str, Any]) -> list[str]:
    """Return the lineages of a chain, one for each entry of its `methods`."""
    given = given_models(settings)
    return [lineage.of_chain(chain["models"], methods, given) for methods in by_hop(chain)]


def trained(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every pair of a model and a method that trains it, once."""
    pairs: dict[tuple[str, str], None] = {}
    given = given_models(settings)
    for chain in settings["chains"]:
        own = [name for name in chain["models"] if name not in given]
        pairs.update(((lineage.start(name), SUPERVISED), None) for name in own)
        for methods in by_hop(chain):
            pairs.update((pair, None) for pair in zip(chain["models"][1:], methods, strict=True))
    yield from pairs


def vocabulary_size(settings: dict[str, Any]) -> int | None:
    """Return the number of tokens, if the file states it."""
    tokenizer = settings["tokenizer"]
    if "words" in tokenizer:
        return len(tokenizer["words"]) + 1  # the end token
    return tokenizer.get("train", tokenizer).get("vocabulary")


def divisors(number: int) -> str:
    """List the divisors of a number, for a message."""
    if number > LISTED:
        return f"a divisor of {number}"
    return "one of " + ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
