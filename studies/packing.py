"""Which way to fill the rows of a batch with documents learns the most per FLOP?

python studies/packing.py --plan      # what would run, and how long it takes
python studies/packing.py             # all of it, on this machine
python studies/packing.py --address auto --workers 8 --set data=/data/my-text
"""

from isoflop.run import AdamW, Evaluation, Rollouts, Run, Schedule, Text
from isoflop.study import Study, grid, main
from isoflop.text import Framing
from models import LlamaConfig

CONTEXT = 64

ROWS: list[Framing] = [
    "stream",  # no masks: a window may begin in one document and end in another
    "packed",  # the same windows, documents kept apart
    "best-fit",  # few documents cut, documents kept apart
    "slide-in",  # one document per row, the first windows padded
    "full-windows",  # one document per row, no padding: the ends of documents are never read
    "right-padded",  # one document per row: what is longer than a window is never read
]


def run(*, rows: Framing, width: int, flops: float, seed: int) -> Run:
    """One point of the grid. Padding costs FLOPs, and every way is judged on the same windows: all
    of a document, and nothing of another.
    """
    return Run(
        model=LlamaConfig(width=width, depth=1, heads=width // 8, context=CONTEXT, tied=True),
        data=Text(source="python-stdlib", tokenizer="bpe-2048", rows=rows, held_out="best-fit"),
        flops=flops,
        batch_tokens=4 * CONTEXT,
        optimizer=AdamW(lr=8e-3 * 32 / width, betas=(0.9, 0.99)),  # the step shrinks with the width
        schedule=Schedule(decay="cosine", warmup=0.1, final=0.1),
        evaluation=Evaluation(tokens=2**14, times=3),
        rollouts=Rollouts(prompts=("", "def main():\n    ", "import os\n"), new_tokens=40),
        seed=seed,
    )


study = Study(
    name="packing",
    run=run,
    points=grid(rows=ROWS, width=[8, 12, 16, 24, 32], flops=[1.2e11], seed=[0]),
    family="rows",
    budget="flops",
)

if __name__ == "__main__":
    main(study)
