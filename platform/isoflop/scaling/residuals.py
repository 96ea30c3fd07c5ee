"""How would the residuals of a small linear fit have fallen, had the noise been drawn anew?"""

from __future__ import annotations

import numpy as np

from isoflop.scaling.interval import Array


def residual_draws(
    design: Array, loss: Array, curve: Array, resamples: int, random: np.random.Generator
) -> Array:
    """Residuals of the linear fit `curve` (P,) to loss (n,) by design (n, P), drawn anew (R, n).

    With few runs the residuals do not know their own level: each resample draws it anew (nu /
    chi2_nu, nu the runs less P).
    """
    freedom = len(loss) - design.shape[1]
    inverse = np.linalg.pinv(design)
    leverage = np.clip((design * inverse.T).sum(axis=1), 0, 1 - 1e-9)
    residual = (loss - design @ curve) / np.sqrt(1 - leverage)
    residual -= residual.mean()
    # Drawn residuals have the variance that the degrees of freedom leave unexplained.
    spread = np.sqrt(((loss - design @ curve) ** 2).sum() / freedom)
    size = np.sqrt((residual**2).mean())
    residual *= spread / size if size > 0 else 0.0
    drawn = random.choice(residual, size=(resamples, len(loss)))
    level = np.sqrt(freedom / random.chisquare(freedom, size=(resamples, 1)))
    noise: Array = drawn * level
    return noise
