"""How do the points of a study reach processors? The only room that imports ray and optuna.

job        one run with all it reads and writes, executed in this process (no Ray in it)
capturing  its rollouts, within their budget, by all of its workers
backfill   its rollouts once more, when it has ended
scribe     those of a run by another process, on copies of its weights
mirror     its folder where no disk is: copies of what lies at a URL
cluster    start or join a Ray cluster
points     many jobs as Ray Tune trials: in the trial itself, or as a group of Ray Train workers
preparing  a text prepared by a whole cluster
"""
