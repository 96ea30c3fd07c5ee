"""Loss against training compute for two architectures: which spends its FLOPs better?

python studies/scaling_grid.py --plan      # what would run, and how long it takes
python studies/scaling_grid.py             # all of it, on this machine
python studies/scaling_grid.py --address auto --workers 8 --set data=/data/my-text
"""

from isoflop.run import AdamW, Evaluation, Rollouts, Run, Schedule, Text
from isoflop.study import Study, grid, main
from models import Config, GPT2Config, LlamaConfig

CONTEXT = 128
DEPTH = {24: 1, 32: 2, 48: 2, 64: 3, 96: 4, 128: 4}  # by width


def model(arch: str, width: int) -> Config:
    """Heads of 16, and one table for reading and writing tokens in both."""
    shape = {"width": width, "depth": DEPTH[width], "heads": max(1, width // 16)}
    if arch == "gpt2":
        return GPT2Config(context=CONTEXT, **shape)
    return LlamaConfig(context=CONTEXT, tied=True, **shape)


# Beginnings of real modules, and the empty page: the same for every run, so that runs compare in pairs.
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


def run(*, arch: str, width: int, flops: float, seed: int) -> Run:
    """One point of the grid. Every decision that a run depends on is stated here."""
    return Run(
        model=model(arch, width),
        data=Text(source="python-stdlib", tokenizer="bpe-2048"),
        flops=flops,
        batch_tokens=4 * CONTEXT,
        optimizer=AdamW(lr=6e-3 * (32 / width) ** 0.5, betas=(0.9, 0.99)),
        schedule=Schedule(decay="cosine", warmup=0.1, final=0.1),
        evaluation=Evaluation(tokens=2**15, times=3),
        rollouts=Rollouts(prompts=PROMPTS, seeds=4, new_tokens=48, captures=4),
        seed=seed,
    )


study = Study(
    name="scaling-grid",
    run=run,
    points=grid(arch=["gpt2", "llama"], width=list(DEPTH), flops=[1e11, 3e11, 9e11], seed=[0]),
    family="arch",
    budget="flops",
)

if __name__ == "__main__":
    main(study)
