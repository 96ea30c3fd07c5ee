"""Does the best learning rate of a narrow model hold for wide ones, by standard rules and by muP?

python studies/learning_rate_transfer.py --plan     # what would run, and how long it takes
python studies/learning_rate_transfer.py            # all of it, on this machine
isoflop fit studies/results/learning-rate-transfer --hyper learning_rate --by axis.parametrisation

The last command lays a curve through the rates of each width and prints the best one with its
interval, and its power of the size: near 0 under muP, where one search serves all widths, and well
below it under the standard parametrisation. Every run reads the same tokens, and differs from its
neighbours in the width and the rate alone.
"""

from typing import Literal

from isoflop.run import AdamW, Evaluation, Parametrisation, Rollouts, Run, Schedule, Text
from isoflop.study import Study, grid, main
from models import LlamaConfig

Kind = Literal["standard", "mup"]
CONTEXT = 64
RATES = [5e-4 * 2**power for power in range(8)]  # a factor 2 apart: curves need a bottom


def run(*, parametrisation: Kind, width: int, lr: float, tokens: float, seed: int) -> Run:
    """One point: at the base width of 16, both parametrisations are the same model."""
    return Run(
        model=LlamaConfig(width=width, depth=2, heads=width // 8, context=CONTEXT, tied=True),
        data=Text(source="python-stdlib", tokenizer="bytes"),
        tokens=int(tokens),
        batch_tokens=8 * CONTEXT,
        optimizer=AdamW(lr=lr, betas=(0.9, 0.99)),
        schedule=Schedule(decay="linear", warmup=0.1, final=0.0),
        parametrisation=Parametrisation(kind=parametrisation, width=16),
        evaluation=Evaluation(tokens=2**14, times=2),
        rollouts=Rollouts(prompts=("def ",), seeds=2, new_tokens=32, captures=2),
        seed=seed,
    )


study = Study(
    name="learning-rate-transfer",
    run=run,
    points=grid(
        parametrisation=["standard", "mup"], width=[16, 32, 64, 128], lr=RATES, tokens=[150_000],
        seed=[0],
    ),
    family="parametrisation",
    budget="tokens",
)  # fmt: skip

if __name__ == "__main__":
    main(study)
