"""As `warm`, in a process of its own: the Hub's library reads its environment when it is imported."""

import warm  # noqa: F401
