"""As `warm_runs`, in a process of its own: the Hub's library reads its environment when it is imported."""

import warm_runs  # noqa: F401
