"""Laws: which size is best for a budget, how sure that is, and which family is better per FLOP.

The fits, and what they rest on:

    interval     a number with its interval, or a typed refusal; cures: which runs would lift it
    envelope     approach 1: the best size at each compute, off the runs' loss curves
    isoflop      approach 2: the loss minimum of each budget, and how it moves with compute
    residuals    that minimum had the noise been drawn anew
    curves       that minimum where the curve is no parabola; contours: in anybody's table
    objective    what a law pays for missing a run
    minimise     which parameters make it pay least; starts: where the search begins (numpy only)
    forms        the laws that are sums of powers; smooth: those that are not; catalogue: all
    slopes       those of the smooth laws in closed form
    parametric   approach 3: fit and bootstrap; optimum: the best size for a budget
    refusals     why a law cannot be laid; edges: which of its parameters vanished
    pins         parameters held at a value; bounds: kept between two
    joint        families that share parameters; multiplier: what one is worth in the other's FLOPs
    noise        the scatter between seeds, and which difference it lets one see

How far they can be trusted:

    holdout      how well a law predicts larger runs; profile: which values the runs allow
    averaging    the forms together, weighed by that
    sensitivity  what moves with choices that nobody can prove right
    verdict      which family reaches the lower loss at equal compute, in words

How loss curves look, and which runs come next:

    collapse     whether the curves of all sizes fall onto one; schedules: and what a rate does
    gain         which further run would tell most about the target for its cost
    ranking      the runs that could be next in the order of their worth; prospects: figures
    register     what was predicted before a run began, and how it turned out
    power        which difference a design could detect, by simulated worlds

Laws of other things than the loss:

    hyperparameters  the best learning rate and batch against size and length
    response     curves of one variable; tasks: compute to loss to accuracy
    metrics      what models write, against compute or loss, to a floor, with at most one break
    sketches     how the envelope and these laws look
    agreement    all of those metrics at once, and whether the best by loss are the best at them

`isoflop fit`, in the order in which a question passes through:

    options      its command line; sources: a table, a study's folder, MLflow
    columns      what each column is; checks: losses that are no final ones, runs that are lost
    question     what was asked; answer: the law of each family and form
    findings     what else the runs say; asked: of hyper-parameters, tasks, metrics
    command      all of it; words: for a terminal; records: as JSON; folder: on disk; plots; files

Everything here reads the run table, one row per run. The fits need neither torch nor Ray.
"""
