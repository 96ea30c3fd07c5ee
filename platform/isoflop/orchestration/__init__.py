"""How do the points of a study reach processors? The only room that imports ray and optuna.

One run, in whatever process (no Ray in these):
job        one run with all it reads and writes, executed in this process
capturing  its rollouts, within their budget, by all of its workers
later      those that the budget had no time for, when all runs are over
backfill   its rollouts once more, when it has ended
system     what it takes of its machine, beside its losses
mirror     its folder where no disk is: copies of what lies at a URL
lease      one driver of a study, where a lock on a disk cannot tell

Many runs on Ray:
cluster    start or join a Ray cluster
ready      processes that wait on a standing one for the next study
slots      how many runs go side by side, and what each gets
sharing    how many of them one GPU holds
staffing   how many workers each run gets
points     many jobs as Ray Tune trials
trials     what a trial's process does: train, or have a group of workers do so
groups     a group of Ray Train workers, kept from run to run
together   small runs of one shape that train as one
scribe     the rollouts of a run by another process, on copies of its weights
preparing  a text prepared by a whole cluster

Searches by Optuna:
searches   which point next, which run is not worth its end, what was found
samplers   Optuna's names for a space, a sampler and a pruner
"""
