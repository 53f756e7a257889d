"""The one error that a user of the workflow is meant to read."""


class InputError(ValueError):
    """Something that the user gave is wrong: one sentence that says where, what, and what would be right."""
