"""Is the recurrent baseline torch's LSTM or GRU, with a state that the caller holds?"""

import pytest
import torch

from models import CharRNNConfig
from models.char_rnn import CharRNN

CELLS = ("lstm", "gru")


def built(cell: str) -> CharRNN:
    torch.manual_seed(0)
    return CharRNN(CharRNNConfig(vocab=61, context=24, width=16, depth=2, cell=cell))  # type: ignore[arg-type]


@pytest.mark.parametrize("cell", CELLS)
def test_an_empty_state_has_every_part_of_every_layer(cell: str) -> None:
    state = built(cell).init_hidden(3)
    assert [part.shape for part in state] == [(2, 3, 16)] * (2 if cell == "lstm" else 1)
    assert all((part == 0).all() for part in state)


@pytest.mark.parametrize("cell", CELLS)
def test_the_cache_is_the_state_after_what_was_read(cell: str) -> None:
    model, tokens = built(cell), torch.randint(61, (3, 9))
    cache = model.new_cache(3, 24)
    with torch.no_grad():
        hidden = model.hidden(tokens, cache)
        _, state = model.read(model.embedding(tokens), model.init_hidden(3))
    for ours, theirs in zip(cache.state, state, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(cache.state[0][-1], hidden[:, -1])
    assert cache.length == 9


def test_an_lstm_begins_by_remembering() -> None:
    bias = sum(
        b for n, b in built("lstm").layers.named_parameters() if n.startswith("bias") and "l0" in n
    )
    assert torch.equal(bias, torch.cat([torch.full((16,), float(gate == 1)) for gate in range(4)]))


def test_gradients_need_no_cache() -> None:
    model = built("lstm")
    with pytest.raises(ValueError, match="no_grad"):
        model(torch.randint(61, (1, 3)), model.new_cache(1, 4))


def test_an_unknown_cell_is_refused() -> None:
    with pytest.raises(ValueError, match="cell is 'rnn'; it must be one of lstm, gru"):
        built("rnn")
