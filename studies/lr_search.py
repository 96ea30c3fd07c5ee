"""Which learning rate, warm-up and momentum suit a small llama best, and which of them matter?

python studies/lr_search.py --plan          # the space, points like those to come, what they cost
python studies/lr_search.py                 # all of it, on this machine
python studies/lr_search.py --trials 60     # the same search, gone on with
optuna-dashboard sqlite:///studies/results/lr-search/optuna.db      # where that is installed

Points are chosen one after another by what was found so far, two at a time on two cores. A run that
is not as good as the median of the others at half of its length, when all warm-ups are over, ends
there. The report says how much each axis explains, and whether the best value lies at the end of
its range.
"""

from isoflop.run import AdamW, Evaluation, Rollouts, Run, Schedule, Text
from isoflop.study import Pruning, Study, choice, log, main, search, uniform
from models import LlamaConfig

CONTEXT = 64
TOKENS = 300_000


def run(*, arch: str, tokens: int, lr: float, warmup: float, beta2: float, seed: int) -> Run:
    """One point: the same model on the same text, trained another way."""
    return Run(
        model=LlamaConfig(width=32, depth=2, heads=4, context=CONTEXT, tied=True),
        data=Text(source="python-stdlib", tokenizer="bpe-2048"),
        tokens=tokens,
        batch_tokens=8 * CONTEXT,
        optimizer=AdamW(lr=lr, betas=(0.9, beta2)),
        schedule=Schedule(decay="cosine", warmup=warmup, final=0.1),
        evaluation=Evaluation(tokens=2**14, times=6),
        rollouts=Rollouts(prompts=("def ",), seeds=2, new_tokens=32, captures=2),
        seed=seed,
    )


study = Study(
    name="lr-search",
    run=run,
    points=search(
        arch="llama",
        tokens=TOKENS,
        lr=log(1e-3, 1e-1),
        warmup=uniform(0.0, 0.3),
        beta2=choice(0.9, 0.95, 0.99, 0.999),
        seed=0,
    ).by("tpe", trials=24, pruning=Pruning(kind="median", first=TOKENS // 2, spared=5)),
    budget="tokens",
)

if __name__ == "__main__":
    main(study)
