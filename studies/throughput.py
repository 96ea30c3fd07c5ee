"""How many tokens a second do models train on here, and how large a batch is still of use?

python studies/throughput.py                    # a minute or two; a GPU measures more of it
python studies/throughput.py --only size=small --compile on
python studies/throughput.py --only precision=bfloat16 --set model.width=1024

Nothing is trained: each point takes a few steps. What this device only emulates, or would take too
long over, is left out and said.
"""

from typing import Literal

from isoflop.run import AdamW, Evaluation, Run, Text
from isoflop.study import Study, grid
from isoflop.throughput import main
from models import LlamaConfig

SIZES = {
    "small": LlamaConfig(width=64, depth=2, heads=4, context=128, tied=True),
    "medium": LlamaConfig(width=256, depth=8, heads=8, context=256, tied=True),
    "large": LlamaConfig(width=1024, depth=16, heads=16, context=1024, tied=True),
}
PRECISIONS: list[Literal["float32", "bfloat16", "float16"]] = ["float32", "bfloat16", "float16"]


def run(*, size: str, precision: Literal["float32", "bfloat16", "float16"], batch: int) -> Run:
    """One point: a batch of so many rows of the model's context."""
    model = SIZES[size]
    return Run(
        model=model,
        data=Text(source="python-stdlib", tokenizer="bpe-2048"),
        tokens=100 * batch * model.context,
        batch_tokens=batch * model.context,
        optimizer=AdamW(lr=1e-3),
        precision=precision,
        evaluation=Evaluation(tokens=2**13, times=1),
    )


study = Study(
    name="throughput",
    run=run,
    points=grid(size=list(SIZES), precision=PRECISIONS, batch=[1, 2, 4, 8, 16, 32, 64, 128, 256]),
    family="size",
    budget="batch",
)

if __name__ == "__main__":
    main(study)
