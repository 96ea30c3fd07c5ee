"""How do repetition, novelty and syntax of what a model writes move with its training compute?

python studies/rollouts_over_scale.py --plan     # what would run, and how long it takes
python studies/rollouts_over_scale.py            # all of it, on this machine
isoflop rollouts studies/results/rollouts-over-scale     # the texts side by side
isoflop fit studies/results/rollouts-over-scale --metric rollout/code/entropy --against loss
isoflop backfill studies/results/rollouts-over-scale/runs/RUN --judge BIGGEST_RUN

Every run is asked the same prompts with the same seeds, so runs compare in pairs; held-out text of
the same length says where people would be. The report has the laws of the telling metrics against
compute, size and loss, and whether the best run by loss is the best by each. Novelty counts
against what each run had read by then, not against all of the text.
"""

from isoflop.run import AdamW, Evaluation, Rollouts, Run, Schedule, Spec, Text
from isoflop.study import Study, grid, main
from models import GPT2Config, LlamaConfig

CONTEXT = 128
ARCHITECTURES = {"gpt2": GPT2Config, "llama": LlamaConfig}

ASKED = Rollouts(
    specs=(
        Spec(name="code", source="code", seeds=4, new_tokens=64),
        Spec(name="held", kind="heldout_prefix", count=16, prefix_tokens=32, seeds=2,
             new_tokens=64),
    ),
    captures=4,
    budget=0.2,  # rollouts are the question here, so they may cost
    novelty=True,
)  # fmt: skip


def run(*, arch: str, width: int, flops: float, seed: int) -> Run:
    """One point of the grid: larger budgets read more text, or train wider models, or both."""
    return Run(
        model=ARCHITECTURES[arch](width=width, depth=2, heads=width // 8, context=CONTEXT),
        data=Text(source="python-stdlib", tokenizer="bpe-2048"),
        flops=flops,
        batch_tokens=4 * CONTEXT,
        optimizer=AdamW(lr=8e-3 * 32 / width, betas=(0.9, 0.99)),
        schedule=Schedule(decay="cosine", warmup=0.1, final=0.1),
        evaluation=Evaluation(tokens=2**14, times=2),
        rollouts=ASKED,
        seed=seed,
    )


study = Study(
    name="rollouts-over-scale",
    run=run,
    points=grid(
        arch=list(ARCHITECTURES),
        width=[16, 24, 32, 48],
        flops=[3e10, 6e10, 1.2e11, 2.4e11],
        seed=[0],
    ),
)

if __name__ == "__main__":
    main(study)
