"""How do the points of a study reach processors? The only room that imports ray and optuna.

job       one run with all it reads and writes, executed in this process (no Ray in it)
cluster   start or join a Ray cluster
points    many jobs as Ray Tune trials: in the trial itself, or as a group of Ray Train workers
"""
