"""isoflop: scaling studies of neural language models.

The rooms, in reading order (data order):

    run            what one training run is: frozen values, hashed and written as JSON
    study          a question as a Python file: points, one run per point, one command line
    data           text -> tokens -> shards -> batches
    objectives     what is predicted, and the loss
    (models)       the zoo: a top-level package of its own, plain torch
    training       the one loop: step, optimizer and schedule, ranks, checkpoints, evaluation
    rollouts       what the model writes while it learns: generate, capture, measure
    tracking       the only file that imports mlflow
    scaling        laws: minima, fits, intervals, verdict, figures
    report         the study as one page
    orchestration  the only room that imports ray and optuna
    cli            the `isoflop` command
"""

__version__ = "0.1.0"
