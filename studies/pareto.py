"""What does a lower loss cost in repetition and entropy of what a model writes?

python studies/pareto.py --plan     # the space, points like those to come, and what they cost
python studies/pareto.py            # all of it, on this machine
isoflop rollouts studies/results/pareto

Three aims at once: the least held-out loss, the fewest tokens that stand among the 32 before them,
and the highest entropy of the tokens, in rollouts of the same prompts and seeds. Neither end of the
last two is good as such: who has learnt nothing repeats nothing. The report shows the trials that
no other beats in one aim without losing in another (the Pareto front), from which to choose by what
held-out text has.
"""

from isoflop.run import AdamW, Evaluation, Rollouts, Run, Schedule, Spec, Text
from isoflop.study import Study, integer, log, main, search, uniform
from isoflop.targets import Autoregressive
from models import LlamaConfig

CONTEXT = 128


def run(
    *, arch: str, flops: float, lr: float, depth: int, width: int, smoothing: float, seed: int
) -> Run:
    """One point: the FLOPs are equal, so that a larger model reads less."""
    return Run(
        model=LlamaConfig(width=width, depth=depth, heads=width // 8, context=CONTEXT, tied=True),
        data=Text(source="python-stdlib", tokenizer="bpe-2048"),
        objective=Autoregressive(smoothing=smoothing),
        flops=flops,
        batch_tokens=4 * CONTEXT,
        optimizer=AdamW(lr=lr, betas=(0.9, 0.99)),
        schedule=Schedule(decay="cosine", warmup=0.1, final=0.1),
        evaluation=Evaluation(tokens=2**14, times=2),
        rollouts=Rollouts(
            specs=(
                Spec(name="held", kind="heldout_prefix", count=16, prefix_tokens=32, seeds=2,
                     new_tokens=64, temperature=0.7),
            ),
            captures=2,
        ),
        seed=seed,
    )  # fmt: skip


study = Study(
    name="pareto",
    run=run,
    points=search(
        arch="llama",
        flops=8e10,
        lr=log(1e-3, 4e-2),
        depth=integer(1, 4),
        width=integer(16, 48, step=8),
        smoothing=uniform(0.0, 0.2),
        seed=0,
    ).by(
        "tpe",
        trials=32,
        minimise=("val/loss", "rollout/held/repeated_32"),
        maximise=("rollout/held/unigram_entropy",),
    ),
)

if __name__ == "__main__":
    main(study)
