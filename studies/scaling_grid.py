"""Loss against training compute for two architectures: which spends its FLOPs better?

python studies/scaling_grid.py --plan      # what would run, and how long it takes
python studies/scaling_grid.py             # all of it, on this machine
python studies/scaling_grid.py --address auto --workers 8 --set data=/data/my-text
"""

from isoflop.run import AdamW, Evaluation, Rollouts, Run, Schedule, Text
from isoflop.study import Grid, Study, grid, main
from models import Config, GPT2Config, LlamaConfig

CONTEXT = 64

# Five or six sizes about each budget's optimum, so that every family is judged at its own best one.
# Where so little can be spent, models are smaller than anybody would deploy, batches are small, and
# text is read as bytes: most FLOPs would else go into a table of words that both families share.
SIZES = {
    2e10: [8, 12, 16, 20, 24],
    5e10: [8, 12, 16, 20, 24, 32],
    1.2e11: [12, 16, 20, 24, 32, 40],
}

# Beginnings of real modules, and an empty page: the same for every run, so that runs compare in
# pairs.
PROMPTS = (
    "",
    "def main():\n    ",
    "class Error(Exception):\n    ",
    "import os\nimport sys\n\n",
    "    def __init__(self, ",
    "    if not isinstance(",
    "# This module ",
    "for line in ",
)


def model(arch: str, width: int) -> Config:
    """Two layers, heads of 8 or a few more, and in both one table for reading and writing."""
    shape = {"width": width, "depth": 2, "heads": width // 8, "context": CONTEXT}
    return GPT2Config(**shape) if arch == "gpt2" else LlamaConfig(**shape, tied=True)


def run(*, arch: str, width: int, flops: float, seed: int) -> Run:
    """One point of the grid. Every decision that a run depends on is stated here."""
    return Run(
        model=model(arch, width),
        data=Text(source="python-stdlib", tokenizer="bytes"),
        flops=flops,
        batch_tokens=4 * CONTEXT,
        optimizer=AdamW(lr=8e-3 * 32 / width, betas=(0.9, 0.99)),  # the step shrinks with the width
        schedule=Schedule(decay="cosine", warmup=0.1, final=0.1),  # shares of each run's own length
        evaluation=Evaluation(tokens=2**14, times=3),
        rollouts=Rollouts(prompts=PROMPTS, seeds=4, new_tokens=40, captures=4),
        seed=seed,
    )


def budget(flops: float) -> Grid:
    return grid(arch=["gpt2", "llama"], width=SIZES[flops], flops=[flops], seed=[0])


study = Study(
    name="scaling-grid",
    run=run,
    points=budget(2e10) + budget(5e10) + budget(1.2e11),
    family="arch",
    budget="flops",
)

if __name__ == "__main__":
    main(study)
