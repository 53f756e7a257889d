"""Prepared data sets, as stages read them."""

from datasets import Dataset, load_from_disk

from takd.runtime.stage import Stage


def dataset_of(stage: Stage, name: str) -> Dataset:
    """Load the data set beside the manifest that a stage gets as its input `name`."""
    return load_from_disk(str(stage.input(name).parent / "dataset"))
