"""Which architectures are there? The zoo: one explicit mapping from a name to its configuration.

    interface   what every model promises: Config, Model, and the two counts
    layers      small parts that models share: places, norm, rotary positions, checks
    kernels     two of those layers with fewer passes, for a CPU
    attention   masks, and scaled dot-product attention behind one function
    cache       the tokens already read, owned by the caller
    decoder     what decoder-only transformers share: counts, stack, head, caches
    gpt2        learned positions, layer norm, GELU, biases, tied head
    llama       rotary positions, RMS norm, gated SiLU, grouped queries, no biases
    lformer     attention and feed-forward in parallel, residual stream attenuated by lambdas
    modern      the reference to beat: normed queries and keys, zero init, squared ReLU, windows
    moe         alternating layers of routed experts, multi-query attention
    char_rnn    LSTM or GRU; its hidden state is its cache
    diffusion   LLaMA read both ways: fills in hidden tokens
    dit         a diffusion transformer, told how much is hidden
    t5          an encoder-decoder whose decoder layers are parallel
    t5_serial   T5 as published

A new model is one new file and one new line in `ZOO`.
"""

from models.char_rnn import CharRNNConfig
from models.diffusion import DiffusionConfig
from models.dit import DiTConfig
from models.gpt2 import GPT2Config
from models.interface import Config
from models.lformer import LformerConfig
from models.llama import LlamaConfig
from models.modern import ModernConfig
from models.moe import MoEConfig
from models.t5 import T5Config
from models.t5_serial import SerialT5Config

ZOO: dict[str, type[Config]] = {
    GPT2Config.name: GPT2Config,
    LlamaConfig.name: LlamaConfig,
    LformerConfig.name: LformerConfig,
    ModernConfig.name: ModernConfig,
    MoEConfig.name: MoEConfig,
    CharRNNConfig.name: CharRNNConfig,
    DiffusionConfig.name: DiffusionConfig,
    DiTConfig.name: DiTConfig,
    T5Config.name: T5Config,
    SerialT5Config.name: SerialT5Config,
}

__all__ = [
    "ZOO",
    "CharRNNConfig",
    "Config",
    "DiTConfig",
    "DiffusionConfig",
    "GPT2Config",
    "LformerConfig",
    "LlamaConfig",
    "MoEConfig",
    "ModernConfig",
    "SerialT5Config",
    "T5Config",
]
