"""Which study should be run for this money? `isoflop plan`: an IsoFLOP design, and its study file.

options     what can be asked for on the command line
shapes      the sizes that an architecture comes in
memory      how many bytes a training step of one of them takes
pilot       where each budget's best size is expected: a rule, or a law of earlier runs
rates       batches and learning rates: a rule, or the laws of earlier sweeps
grid        budgets, sizes, tokens and seeds
money       FLOPs from hours and dollars, hours and dollars from FLOPs
command     the table, the JSON and the picture
writing     the plan as a study file that runs
"""
