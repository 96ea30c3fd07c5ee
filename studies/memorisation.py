"""How long are the spans that a model copies, and how much does it recite, after how many epochs?

python studies/memorisation.py --plan     # what would run, and how long it takes
python studies/memorisation.py            # all of it, on this machine

A small text is read again and again. Greedy continuations of beginnings that training has read are
compared with how the text goes on, word for word; beginnings of held-out text are the control, and
show what can be guessed. `rollout/trained/recalled` and `rollout/trained/longest_copy` against
`epochs` of the run table are the answer.
"""

from isoflop.run import AdamW, Evaluation, Rollouts, Run, Schedule, Spec, Text
from isoflop.study import Study, grid, main
from models import LlamaConfig

CONTEXT = 64
HELD_OUT = 0.98  # of the default text: what is left to train on is read often within minutes

PREFIXES = {"count": 48, "prefix_tokens": 24, "seeds": 1, "temperature": 0.0, "new_tokens": 32}

ASKED = Rollouts(
    specs=(
        Spec(name="trained", kind="train_prefix", **PREFIXES),
        Spec(name="held", kind="heldout_prefix", **PREFIXES),
        Spec(name="free", kind="empty", seeds=32, new_tokens=32),
    ),
    captures=3,
    budget=0.2,  # rollouts are the question here, so they may cost
    novelty=True,
)


def run(*, width: int, tokens: int, seed: int) -> Run:
    """One point: the same little text, read for so many tokens."""
    return Run(
        model=LlamaConfig(width=width, depth=2, heads=width // 8, context=CONTEXT, tied=True),
        data=Text(source="python-stdlib", tokenizer="bpe-512", validation=HELD_OUT),
        tokens=tokens,
        batch_tokens=8 * CONTEXT,
        optimizer=AdamW(lr=8e-3 * 32 / width, betas=(0.9, 0.99)),
        schedule=Schedule(decay="cosine", warmup=0.05, final=0.1),
        evaluation=Evaluation(tokens=2**14, times=3),
        rollouts=ASKED,
        seed=seed,
    )


study = Study(
    name="memorisation",
    run=run,
    points=grid(width=[32, 64], tokens=[125_000, 500_000, 2_000_000], seed=[0]),
    family="width",
    budget="tokens",
)

if __name__ == "__main__":
    main(study)
