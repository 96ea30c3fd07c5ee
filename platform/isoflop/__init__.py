"""isoflop: scaling studies of neural language models.

The rooms, in reading order (data order):

    run            what one training run is: frozen values, hashed and written as JSON
    text           its part that says which text, and how it fills rows
    captures       its part that says what the model is asked to write, and when
    targets        what a run may be asked to predict: three objectives as values
    design         a question as values: axes, their points, one run per point
    space          what a search looks through, and what it is after
    study          the command line that every study has
    campaign       what that command does on one machine: plan, train, report
    watching       who looks on while it runs, and what ends it early
    searching      runs that are chosen while others train
    trunks         runs that share their beginning with a longer one
    upcoming       which run a study should do next, and doing it
    preregister    the largest runs, held back until their loss is predicted
    planning       which study a budget pays for: `isoflop plan`
    data           text -> tokens -> shards -> batches
    objectives     what is predicted, and the loss
    (models)       the zoo: a top-level package of its own, plain torch
    training       the one loop: step, optimizer and schedule, ranks, checkpoints, evaluation
    exchange       models in the form of the Hugging Face hub, and our checkpoints by themselves
    rollouts       what the model writes while it learns: generate, capture, measure
    sample         what a checkpoint writes after a prompt: `isoflop sample`
    train          one run that is written in a file: `isoflop train`
    reward         how a checkpoint goes on by reward: `isoflop reward`
    score          how well a checkpoint predicts a text: `isoflop evaluate`
    tracking       what MLflow is told; the only file, but the next, that imports mlflow
    telling        what of a study MLflow still has to be told
    tracked        what MLflow has recorded
    patience       calls to a server that is away
    scaling        laws: minima, fits, intervals, verdict, figures
    record         the run table, from which everything is concluded
    report         the study as one page
    orchestration  the only room that imports ray and optuna
    benchmarks     what it costs here, as ratios
    cli            the `isoflop` command
"""

__version__ = "0.1.0"
