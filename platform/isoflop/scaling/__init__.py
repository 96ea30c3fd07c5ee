"""Laws: which size is best for a budget, how sure that is, and which family is better per FLOP.

    interval     a number with its interval, or a typed refusal
    isoflop      approach 2: the loss minimum of each budget, and how it moves with compute
    curves       that minimum where the curve is no parabola; contours: in anybody's table
    objective    what a law pays for missing a run
    minimise     which parameters make it pay least; starts: where the search begins (numpy only)
    forms        the laws that are sums of powers; smooth: those that are not; catalogue: all
    parametric   approach 3: fit and bootstrap; optimum: the best size for a budget
    joint        families that share parameters; multiplier: what one is worth in the other's FLOPs
    holdout      how well a law predicts larger runs; profile: which values the runs allow
    verdict      which family reaches the lower loss at equal compute, in words
    plots        the figures
    command      `isoflop fit`: anybody's table (columns) to laws in text, JSON or a folder

Everything here reads the run table, one row per run. The fits need neither torch nor Ray.
"""
