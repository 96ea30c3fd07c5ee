"""Bits per byte against the size of the vocabulary: which one spends its compute best?

python studies/tokenizers.py --plan     # what would run, and how long it takes
python studies/tokenizers.py            # all of it, on this machine
python studies/tokenizers.py --set data=/data/my-text

A larger vocabulary reads more text per token and per window, and pays for it in the head: at equal
FLOPs it gets fewer tokens. Nats per token do not compare between vocabularies, so the study judges
by bits per byte.
"""

from isoflop.run import AdamW, Evaluation, Rollouts, Run, Schedule, Text
from isoflop.study import Grid, Study, grid, main
from models import LlamaConfig

CONTEXT = 64  # tokens: a larger vocabulary sees further back, which is part of what it buys
HELD_OUT = 2**16  # bytes of text that every run is judged on, about

# Bytes of the default text that a token stands for.
BYTES_PER_TOKEN = {"bytes": 1.0, "bpe-512": 2.0, "bpe-2k": 3.0, "bpe-8k": 3.7}


# About the best size of each: the larger the head, the smaller the model that pays for it.
WIDTHS = {
    "bytes": [8, 12, 16, 24, 32],
    "bpe-512": [8, 12, 16, 24, 32],
    "bpe-2k": [6, 8, 12, 16, 24],
    "bpe-8k": [4, 6, 8, 12, 16],
}


def run(*, tokenizer: str, width: int, flops: float, seed: int) -> Run:
    """One point. Only the tokenizer differs at a size."""
    heads = max(1, width // 8)
    return Run(
        model=LlamaConfig(width=width, depth=2, heads=heads, context=CONTEXT, tied=True),
        data=Text(source="python-stdlib", tokenizer=tokenizer),
        flops=flops,  # exact: the head counts
        batch_tokens=4 * CONTEXT,
        optimizer=AdamW(lr=8e-3 * 32 / width, betas=(0.9, 0.99)),
        schedule=Schedule(decay="cosine", warmup=0.1, final=0.1),
        evaluation=Evaluation(tokens=round(HELD_OUT / BYTES_PER_TOKEN[tokenizer]), times=2),
        rollouts=Rollouts(prompts=("", "def main():\n    "), seeds=2, new_tokens=40, captures=2),
        seed=seed,
    )


def sizes(tokenizer: str) -> Grid:
    return grid(tokenizer=[tokenizer], width=WIDTHS[tokenizer], flops=[4e10, 1.2e11], seed=[0])


study = Study(
    name="tokenizers",
    run=run,
    points=sizes("bytes") + sizes("bpe-512") + sizes("bpe-2k") + sizes("bpe-8k"),
    objective="val/bits_per_byte",
    family="tokenizer",
    budget="flops",
)

if __name__ == "__main__":
    main(study)
