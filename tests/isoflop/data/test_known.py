"""Is the entropy of the known source what it claims, and can nobody do better on its text?"""

from __future__ import annotations

import math
import pickle

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.data import known, sources, tokenizers
from isoflop.data.documents import Damage
from isoflop.data.known import Known

SMALL = Known(seed=3, words=40, states=6, choices=8, length=64, documents=512)


def texts(machine: Known) -> list[str]:
    return [d.text for part in machine.parts() for d in part.documents(Damage())]


def forward(machine: Known, words: npt.NDArray[np.int64]) -> float:
    """Mean surprisal (nats) of a row of words, by the forward algorithm over all hidden states.

    It knows nothing of the first state, nor that a state and a word have only one successor.
    """
    leads = np.zeros((machine.words, machine.states, machine.states))  # word, from, to
    for state in range(machine.states):
        for rank, probability in enumerate(machine.probabilities):
            word, follower = machine.says[state, rank], machine.follows[state, rank]
            leads[word, state, follower] += probability
    belief = np.full(machine.states, 1 / machine.states)
    total = 0.0
    for word in words:
        belief = belief @ leads[word]
        total -= math.log(belief.sum())
        belief /= belief.sum()
    return total / len(words)


def test_the_forward_algorithm_finds_the_entropy_rate() -> None:
    """Within four standard errors, and what not knowing the first state may cost at most."""
    machine = Known(seed=1, words=50, states=8, choices=10, length=100_000, documents=2)
    words = machine.write(0, 1)[0]
    error = 4 * machine.deviation / math.sqrt(len(words))
    unknown_start = math.log(machine.states) / len(words)
    assert abs(forward(machine, words) - machine.entropy) < error + unknown_start
    assert error < 0.02 * machine.entropy


def test_models_that_see_less_do_worse() -> None:
    """The floor is a floor: counts of words, and of pairs, stay above it on other documents."""
    machine = Known(seed=5, words=30, states=4, choices=6, length=128, documents=600)
    words = machine.write(0, 600)
    train, test = words[:500], words[500:]
    single = np.bincount(train.ravel(), minlength=30) + 0.5
    pairs = np.full((30, 30), 0.1)
    np.add.at(pairs, (train[:, :-1], train[:, 1:]), 1)
    by_word = -np.log(single / single.sum())[test].mean()
    by_pair = -np.log(pairs / pairs.sum(1, keepdims=True))[test[:, :-1], test[:, 1:]].mean()
    error = 4 * machine.deviation / math.sqrt(test.size)
    assert machine.entropy + error < by_pair < by_word


def test_whoever_peeks_is_found_out() -> None:
    """The machine itself stays about the floor; one that is told every tenth word falls below."""
    machine = Known(seed=2, length=500, documents=40)
    words = machine.write(0, 40)
    surprisal, state = np.empty(words.shape), np.zeros(len(words), dtype=np.int64)
    for t in range(words.shape[1]):
        ranks = (machine.says[state] == words[:, t, None]).argmax(axis=1)
        surprisal[:, t] = -np.log(machine.probabilities[ranks])
        state = machine.follows[state, ranks]
    assert abs(machine.standard_errors_below(float(surprisal.mean()), words.size)) < 4
    surprisal[:, ::10] = 0
    assert machine.standard_errors_below(float(surprisal.mean()), words.size) > 10


def test_the_entropy_of_every_state_is_that_of_its_choices() -> None:
    uniform = Known(seed=0, choices=64, exponent=0.0)
    assert uniform.entropy == pytest.approx(math.log(64))
    assert uniform.deviation == pytest.approx(0, abs=1e-6)
    two = Known(seed=0, words=2, choices=2)
    assert two.entropy == pytest.approx(math.log(3) - 2 / 3 * math.log(2))
    for state in range(SMALL.states):
        assert len(set(SMALL.says[state])) == SMALL.choices, "a word must lead to one state only"


def test_common_words_are_common() -> None:
    counts = np.bincount(Known(seed=0).write(0, 200).ravel(), minlength=1024)
    assert counts[:100].sum() > 0.4 * counts.sum()
    assert counts[:10].mean() > 5 * counts[100:200].mean() > 10 * counts[900:].mean()


def test_a_word_is_a_token_of_the_word_tokenizer() -> None:
    """Then the floor per token is exact, and so is the one per byte."""
    documents = texts(SMALL)
    tokenizer = tokenizers.train("words-400", documents)
    for text in documents[:20]:
        ids = tokenizer.encode(text)
        assert len(ids) == SMALL.length
        assert len(text.encode()) == SMALL.length * known.WORD_BYTES
    assert SMALL.nats_per_byte * known.WORD_BYTES == pytest.approx(SMALL.entropy)
    assert SMALL.nats_per_token == pytest.approx(SMALL.entropy * 64 / 65)


def test_parts_join_to_one_text_that_never_changes() -> None:
    machine = Known(seed=9, length=12, documents=9000)
    parts = machine.parts()
    assert [part.bytes for part in parts] == [245760, 245760, 48480]
    again = [pickle.loads(pickle.dumps(part)) for part in parts]
    joined = [d for part in again for d in part.documents(Damage())]
    assert [d.name for d in joined] == [str(k) for k in range(9000)]
    assert [d.text for d in joined] == texts(machine)
    assert len({d.text for d in joined}) == 9000
    assert texts(Known(seed=3, length=3, documents=2)) == [" qavu sice caco", " wuvu rapu hipu"]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**40), states=st.integers(1, 20), choices=st.integers(2, 20))
def test_its_name_says_all(seed: int, states: int, choices: int) -> None:
    machine = Known(seed=seed, states=states, choices=choices, words=20)
    assert known.named(machine.name) == machine


def test_it_opens_by_name() -> None:
    source = sources.open("known:7,documents=3,length=5,exponent=1.2")
    assert isinstance(source, Known)
    assert (source.seed, source.documents, source.length, source.exponent) == (7, 3, 5, 1.2)
    assert len(list(sources.documents("known:7,documents=3,length=5"))) == 3
    assert source.stamp() != sources.open("known:8,documents=3,length=5").stamp()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("known:", "must read like 'known:0,words"),
        ("known:x", "must read like"),
        ("known:1,words", "'words' is not KEY=VALUE"),
        ("known:1,color=3", "no option 'color'; allowed are seed, words, states"),
        ("known:1,words=1", "words of data.source is 1; it must be from 2 to 11025"),
        ("known:1,words=9", "choices of data.source is 64; it must be from 2 to 9"),
        ("known:1,exponent=-1", "exponent of data.source is -1.0"),
        ("known:-1", "seed of data.source is -1"),
    ],
)
def test_a_wrong_name_says_what_is_allowed(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sources.open(name)
