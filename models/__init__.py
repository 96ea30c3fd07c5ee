"""Which architectures are there? The zoo: one explicit mapping from a name to its configuration.

    interface   what every model promises: Config, Model, and the two counts
    layers      small parts that models share: norm, rotary positions, initialisation, checks
    kernels     two of those layers with fewer passes, for a CPU
    attention   scaled dot-product attention behind one function
    cache       keys and values of the tokens already read, owned by the caller
    gpt2        learned positions, layer norm, GELU, biases, tied head
    llama       rotary positions, RMS norm, gated SiLU, grouped queries, no biases

A new model is one new file and one new line in `ZOO`.
"""

from models.gpt2 import GPT2Config
from models.interface import Config
from models.llama import LlamaConfig

ZOO: dict[str, type[Config]] = {
    GPT2Config.name: GPT2Config,
    LlamaConfig.name: LlamaConfig,
}

__all__ = ["ZOO", "Config", "GPT2Config", "LlamaConfig"]
