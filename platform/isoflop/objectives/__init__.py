"""What is predicted? Each objective frames rows of text as a batch, and gives its loss in nats.

    interface       what the loop asks of an objective, and what a batch is
    loss            cross entropy, in chunks where the vocabulary is large
    regularise      what training adds to it: smoothing, z-loss, contrast
    autoregressive  the next token
    denoising       spans cut out of the text
    diffusion       hidden tokens, on both sides of which there is text

A new objective is a configuration in `isoflop.targets`, a file here, and a line in `build`.
"""

from isoflop import targets
from isoflop.objectives.autoregressive import NextToken
from isoflop.objectives.denoising import Denoising
from isoflop.objectives.diffusion import Unmasking
from isoflop.objectives.interface import Batch, Objective
from models.interface import Config


def build(config: targets.Objective, model: Config) -> Objective:
    """The objective that a run's configuration names, for its (resolved) model."""
    match config:
        case targets.SpanDenoising():
            return Denoising(config, model.text_vocab)
        case targets.MaskedDiffusion():
            return Unmasking(model.text_vocab, blank=model.vocab - 1)
        case targets.Autoregressive():
            return NextToken(model.vocab)
    raise AssertionError(f"no code computes {config}")


__all__ = ["Batch", "Objective", "build"]
