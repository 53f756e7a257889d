"""ABKD (Wang et al., arXiv 2505.04560): the α-β divergence, which includes both KL divergences.

L = (1/N) Σ_t D_αβ(p, q) with D_αβ = -1/(αβ) Σ_v [ p^α q^β - α/(α+β) p^(α+β) - β/(α+β) q^(α+β) ]
(definition 4.1). The paper trains with it on fixed data, and also in the regimes of GKD and
DistiLLM (see `takd.methods.on_policy`).
"""

from functools import partial

from takd.losses.divergences import alpha_beta
from takd.methods.on_policy import StudentRows
from takd.methods.token_losses import Divergence


class Abkd(StudentRows):
    """ABKD, in any sampling regime."""

    @property
    def divergence(self) -> Divergence:
        return partial(alpha_beta, alpha=self.settings["alpha"], beta=self.settings["beta"])


METHOD = Abkd
