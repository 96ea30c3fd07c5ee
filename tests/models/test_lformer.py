"""Is the L-former the parallel decoder that its file says, and do its lambdas learn?"""

import torch
from torch.nn import functional as F

from models import LformerConfig
from models.attention import attend
from models.layers import rotate
from models.lformer import Lformer

CONFIG = LformerConfig(vocab=61, context=24, width=32, depth=3, heads=4, kv_heads=2)


def test_a_block_is_the_stated_formula() -> None:
    """lambda_f (lambda_a x + attention(n)) + feed_forward(n), from the parts of its matrices."""
    torch.manual_seed(0)
    model = Lformer(CONFIG)
    block, x = model.blocks[0], torch.randn(2, 7, 32)
    with torch.no_grad():
        block.attenuation.copy_(torch.tensor([0.7, 0.4]))
    seen = []
    block.register_forward_hook(lambda module, inputs, output: seen.append((inputs, output)))
    model.hidden(torch.randint(61, (2, 7)))
    (x, _), y = seen[0]
    n = block.norm(x)
    widths = (32, 16, 16, CONFIG.inner, CONFIG.inner)
    q, k, v, gate, up = (F.linear(n, part) for part in block.input.weight.split(widths))
    q, k = (rotate(part.view(2, 7, -1, 8), model.rotation[:7]).transpose(1, 2) for part in (q, k))
    mixed = attend(q, k, v.view(2, 7, -1, 8).transpose(1, 2)).transpose(1, 2).reshape(2, 7, 32)
    of_attention, of_inner = block.output.weight.split((32, CONFIG.inner), dim=1)
    attention = F.linear(mixed, of_attention)
    feed_forward = F.linear(F.silu(gate) * up, of_inner)
    expected = 0.4 * (0.7 * x + attention) + feed_forward
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


def test_all_query_heads_share_one_head_of_keys_unless_told() -> None:
    config = LformerConfig(width=32, depth=1, heads=4)
    assert (config.key_value_heads, CONFIG.key_value_heads) == (1, 2)


def test_the_lambdas_learn() -> None:
    torch.manual_seed(0)
    model = Lformer(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = (torch.arange(25) % 5).repeat(4, 1)
    for _ in range(10):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = torch.stack([block.attenuation - 1 for block in model.blocks])
    assert (moved.abs() > 1e-3).all()
