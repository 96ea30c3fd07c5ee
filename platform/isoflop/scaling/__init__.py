"""Laws: which size is best for a budget, how sure that is, and which family is better per FLOP.

    interval     a number with its interval, or a typed refusal
    isoflop      approach 2: the loss minimum of each budget, and how it moves with compute
    huber        which parameters minimise the robust log loss (numpy only)
    parametric   approach 3: L(N, D) = E + A N^-alpha + B D^-beta, bootstrap, optimum
    verdict      which family reaches the lower loss at equal compute, in words
    plots        the figures

Everything here reads the run table, one row per run. The fits need neither torch nor Ray.
"""
