"""Loss against compute on a text of known entropy: how near the floor does each model come?

python studies/known_entropy.py --plan     # what would run, and how long it takes
python studies/known_entropy.py            # all of it, on this machine

The floor is 0.8298 bits per byte, or 2.8303 nats per token: all words of a row but the first are
predicted, and the end of text, which is certain. No honest run ends below it by more than chance,
whose standard error is 0.006 nats: this is a check of the method, not of the models. One that does
has seen what it should predict; a law that is fitted to these losses should find the floor as the
loss that no compute removes.
"""

from isoflop.run import AdamW, Evaluation, Rollouts, Run, Schedule, Text
from isoflop.study import Study, grid, main
from models import Config, GPT2Config, LlamaConfig

# A document is a row: 63 words and the end of text. Each state says some of the words, and tells by
# them which one is next.
SOURCE = "known:0,words=256,states=8,choices=32,length=63,documents=20000"
CONTEXT = 63


def run(*, arch: str, width: int, flops: float, seed: int) -> Run:
    """One point: widths differ in capacity, budgets in how much of the text is read."""
    shape = {"width": width, "depth": 2, "heads": max(1, width // 8), "context": CONTEXT}
    model: Config = GPT2Config(**shape) if arch == "gpt2" else LlamaConfig(**shape, tied=True)
    return Run(
        model=model,
        data=Text(source=SOURCE, tokenizer="words-1k", rows="best-fit"),
        flops=flops,
        batch_tokens=8 * CONTEXT,
        optimizer=AdamW(lr=8e-3 * 32 / width, betas=(0.9, 0.99)),
        schedule=Schedule(decay="cosine", warmup=0.1, final=0.05),
        evaluation=Evaluation(tokens=500 * CONTEXT, times=4),
        rollouts=Rollouts(prompts=("",), seeds=2, new_tokens=40, captures=2),
        seed=seed,
    )


study = Study(
    name="known-entropy",
    run=run,
    points=grid(
        arch=["gpt2", "llama"], width=[8, 12, 16, 24, 32], flops=[2e10, 6e10, 1.8e11], seed=[0]
    ),
    objective="val/bits_per_byte",  # the end of text counts no bytes, so it only adds to the floor
    family="arch",
    budget="flops",
)

if __name__ == "__main__":
    main(study)
