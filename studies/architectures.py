"""Loss at equal training compute for every decoder of the zoo: which spends its FLOPs best?

python studies/architectures.py --plan     # what would run, and how long it takes
python studies/architectures.py            # all of it, on this machine
python studies/architectures.py --only arch=moe --set data=/data/my-text

Each family is given five or six sizes and its own best one counts, so that none is judged at a size
that suits another; how far the sizes stand off their parabola says how sure the order is. Text is
read as bytes: with the words of a larger vocabulary, most FLOPs of such small models would go into
the one product that all families share. The learning rate follows the width by one rule for all:
who tunes it per family asks a sharper question. `moe` pays for the experts that a token uses, and
owns the others for free.
"""

from typing import Any

from isoflop.run import AdamW, Evaluation, Rollouts, Run, Schedule, Text
from isoflop.study import Grid, Study, grid, main
from models import (
    CharRNNConfig,
    Config,
    GPT2Config,
    LformerConfig,
    LlamaConfig,
    ModernConfig,
    MoEConfig,
)

CONTEXT = 64
DECODERS = {"gpt2": GPT2Config, "llama": LlamaConfig, "lformer": LformerConfig}
DECODERS |= {"modern": ModernConfig, "moe": MoEConfig}
SIZES = {3e10: [8, 12, 16, 20, 24], 8e10: [12, 16, 20, 24, 32, 40]}  # about each budget's optimum


def model(arch: str, width: int) -> Config:
    """Two layers and heads of 8 or a few more; one table for reading and writing in all of them."""
    if arch == "char_rnn":
        return CharRNNConfig(width=width, depth=2, context=CONTEXT)
    shape: dict[str, Any] = {"width": width, "depth": 2, "heads": width // 8, "context": CONTEXT}
    return GPT2Config(**shape) if arch == "gpt2" else DECODERS[arch](**shape, tied=True)


def run(*, arch: str, width: int, flops: float, seed: int) -> Run:
    """One point of the grid: at a size and budget, only the architecture differs."""
    return Run(
        model=model(arch, width),
        data=Text(source="python-stdlib", tokenizer="bytes"),
        flops=flops,  # exact, of what is active
        batch_tokens=4 * CONTEXT,
        optimizer=AdamW(lr=8e-3 * 32 / width, betas=(0.9, 0.99)),
        schedule=Schedule(decay="cosine", warmup=0.1, final=0.1),
        evaluation=Evaluation(tokens=2**14, times=2),
        rollouts=Rollouts(prompts=("", "def main():\n    "), seeds=2, new_tokens=40, captures=2),
        seed=seed,
    )


def budget(flops: float) -> Grid:
    return grid(arch=[*DECODERS, "char_rnn"], width=SIZES[flops], flops=[flops], seed=[0])


study = Study(
    name="architectures",
    run=run,
    points=budget(3e10) + budget(8e10),
    family="arch",
    budget="flops",
)

if __name__ == "__main__":
    main(study)
