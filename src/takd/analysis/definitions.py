"""Definition of each measure in a sentence; docs/measures.md has the formulas and sources."""

from takd.analysis.measures import Measure


def definition(measure: Measure) -> str:
    """Definition of a measure."""
    return measure.definition


def better(measure: Measure) -> str:
    """Arrow that shows which direction is better; empty where neither is."""
    return measure.arrow
