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
