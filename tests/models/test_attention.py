"""Does `attend` equal attention written out by hand, whatever the mask and the backend?"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from models.attention import BACKENDS, Mask, attend


def by_hand(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """One query at a time, one head at a time."""
    result = torch.empty_like(q)
    past = k.shape[2] - q.shape[2]
    shared = q.shape[1] // k.shape[1]
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            for t in range(q.shape[2]):
                seen = past + t + 1 if causal else k.shape[2]
                keys, values = k[row, head // shared, :seen], v[row, head // shared, :seen]
                weights = (keys @ q[row, head, t] / math.sqrt(q.shape[3])).exp()
                result[row, head, t] = (weights / weights.sum()) @ values
    return result


def heads(count: int, tokens: int, seed: int) -> Tensor:
    return torch.randn(2, count, tokens, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize(("new", "past"), [(1, 0), (9, 0), (1, 6), (5, 4), (2, 1)])
def test_equals_attention_by_hand(new: int, past: int, shared: int, causal: bool) -> None:
    q = heads(4, new, 0)
    k, v = heads(4 // shared, past + new, 1), heads(4 // shared, past + new, 2)
    expected = by_hand(q, k, v, causal)
    torch.testing.assert_close(attend(q, k, v, Mask(causal=causal)), expected, rtol=1e-5, atol=1e-6)


def test_gradients_equal_those_by_hand() -> None:
    q, k, v = inputs = [heads(n, 7, seed).requires_grad_() for seed, n in enumerate((4, 2, 2))]
    weights = heads(4, 7, 3)
    ours = torch.autograd.grad((attend(q, k, v) * weights).sum(), inputs)
    theirs = torch.autograd.grad((by_hand(q, k, v, causal=True) * weights).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_merging_the_heads_of_a_training_batch_is_a_view() -> None:
    q = torch.randn(2, 16, 4, 8).transpose(1, 2)
    mixed = attend(q, q, q)
    assert mixed.transpose(1, 2).is_contiguous()


def test_causal_queries_cannot_outnumber_the_tokens() -> None:
    with pytest.raises(AssertionError, match="among the tokens"):
        attend(heads(2, 5, 0), heads(2, 4, 1), heads(2, 4, 2))


def readable(mask: Mask, row: int, query: int, key: int) -> bool:
    """The conditions one by one, in plain Python; a document is a run of equal ids."""
    allowed = key <= query or not mask.causal
    if mask.prefix is not None:
        prefix = mask.prefix if isinstance(mask.prefix, int) else int(mask.prefix[row])
        allowed = allowed or key < prefix
    if mask.window is not None:
        allowed = allowed and abs(query - key) < mask.window
    if mask.documents is not None:
        between = mask.documents[row, min(query, key) : max(query, key) + 1]
        allowed = allowed and len(between.unique()) == 1
    return allowed


def masked_by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Mask, bias: Tensor | None) -> Tensor:
    rows, _, new, size = q.shape
    total, shared = k.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    scores = q @ k.mT / math.sqrt(size) + (0 if bias is None else bias)
    for row in range(rows):
        for t in range(new):
            for key in range(total):
                if not readable(mask, row, total - new + t, key):
                    scores[row, :, t, key] = -torch.inf
    return scores.softmax(dim=-1) @ v


@st.composite
def masks(draw: st.DrawFn, rows: int, total: int) -> Mask:
    """Every combination of conditions under which a token reads at least itself."""
    number = st.integers(0, total)
    several = st.lists(number, min_size=rows, max_size=rows).map(torch.tensor)
    ids = st.lists(st.integers(-1, 1), min_size=total, max_size=total)
    return Mask(
        causal=draw(st.booleans()),
        prefix=draw(st.none() | number | several),
        window=draw(st.none() | st.integers(1, total + 1)),
        documents=draw(st.none() | st.lists(ids, min_size=rows, max_size=rows).map(torch.tensor)),
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_mask_means_what_it_says(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 7), label="total")
    new = data.draw(st.integers(1, total), label="new")
    mask = data.draw(masks(2, total), label="mask")
    bias = data.draw(st.sampled_from([None, heads(4, 1, 5)[:1, :, :, :1]]), label="bias")
    if bias is not None:
        bias = bias * torch.randn(1, 1, new, total, generator=torch.Generator().manual_seed(7))
    q, k, v = heads(4, new, 0), heads(2, total, 1), heads(2, total, 2)
    expected = masked_by_hand(q, k, v, mask, bias)
    torch.testing.assert_close(attend(q, k, v, mask, bias=bias), expected, rtol=1e-5, atol=1e-5)


IDS = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, -1], [4, 4, 4, 4, 4, 4, 4, 5, 5]])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
def test_a_trained_bias_has_torchs_values_and_gradients(
    causal: bool, rows: int, scale: float | None
) -> None:
    q, k, v = (heads(4, 6, seed).double().requires_grad_() for seed in range(3))
    bias = torch.randn(rows, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    hidden = ~torch.ones(6, 6, dtype=torch.bool).tril()
    theirs = F.scaled_dot_product_attention(
        q, k, v, bias.masked_fill(hidden, -torch.inf) if causal else bias, scale=scale
    )
    ours = attend(q, k, v, Mask(causal=causal), bias=bias, scale=scale)
    weights = torch.randn_like(theirs)
    leaves = (q, k, v, bias)
    for one, other in zip(
        (ours, *torch.autograd.grad(ours, leaves, weights)),
        (theirs, *torch.autograd.grad(theirs, leaves, weights)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_a_query_that_may_read_nothing_harms_nothing() -> None:
    q, k, v = (heads(4, 6, seed).requires_grad_() for seed in range(3))
    bias = torch.zeros(1, 4, 6, 6, requires_grad=True)
    nothing = bias.masked_fill(torch.arange(6)[:, None] == 2, -torch.inf)
    found = attend(q, k, v, Mask(causal=False), bias=nothing)
    gradients = torch.autograd.grad(found.sum(), (q, k, v, bias))
    assert all(each.isfinite().all() for each in (found, *gradients))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    "mask",
    [
        Mask(),
        Mask(causal=False),
        Mask(window=3),
        Mask(prefix=torch.tensor([2, 6])),
        Mask(documents=IDS),
        Mask(causal=False, documents=IDS, window=2),
    ],
    ids=["causal", "all", "window", "prefix", "documents", "both"],
)
def test_flex_equals_the_default_backend(mask: Mask, biased: bool) -> None:
    q, k, v = heads(4, 9, 0), heads(2, 9, 1), heads(2, 9, 2)
    bias = heads(4, 9, 3)[:, :, :, :1] * heads(4, 9, 4)[:, :, :, 0].unsqueeze(2) if biased else None
    flex = Mask(
        causal=mask.causal,
        prefix=mask.prefix,
        window=mask.window,
        documents=mask.documents,
        backend="flex",
    )
    for new in (9, 2) if bias is None else (9,):
        expected = attend(q[:, :, -new:], k, v, mask, bias=bias)
        ours = attend(q[:, :, -new:], k, v, flex, bias=bias)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_window_needs_no_mask_for_one_new_token() -> None:
    mask = Mask(window=4)
    attend(heads(4, 1, 0), heads(4, 9, 1), heads(4, 9, 2), mask)
    assert not mask._built


def test_layers_share_what_a_mask_built() -> None:
    mask, q = Mask(documents=IDS), heads(4, 9, 0)
    attend(q, q, q, mask)
    built = mask.dense(9, 9, q)
    attend(q, q, q, mask)
    assert mask.dense(9, 9, q) is built


def test_flash_without_its_package_is_a_clear_error() -> None:
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        message = "needs the flash-attn package"
    else:
        message = "on CUDA, not"
    q = heads(2, 3, 0)
    with pytest.raises(ValueError, match=message):
        attend(q, q, q, Mask(backend="flash"))


def test_steps_of_fixed_shapes_are_the_default_backends() -> None:
    """The queries stand behind the keys that are held; what lies beyond is not read."""
    q, k, v = heads(4, 2, 0), heads(4, 9, 1), heads(4, 9, 2)
    held = torch.tensor([5])
    found = attend(q, k, v, Mask(held=held, window=3))
    expected = attend(q, k[:, :, :7], v[:, :, :7], Mask(window=3))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="'flex' has no step of fixed shapes"):
        attend(q, k, v, Mask(held=held, backend="flex"))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_backends_agree_on_a_gpu(backend: str) -> None:
    if backend == "flash":
        pytest.importorskip("flash_attn", reason="needs the flash extra")
    q, k, v = (heads(4, 9, seed).repeat(1, 1, 20, 8).cuda().bfloat16() for seed in range(3))
    for mask in (Mask(), Mask(window=16), Mask(documents=IDS.repeat_interleave(20, 1).cuda())):
        other = Mask(window=mask.window, documents=mask.documents, backend=backend)  # type: ignore[arg-type]
        expected = attend(q, k, v, mask)
        torch.testing.assert_close(attend(q, k, v, other), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("field", "value"), [("window", 0), ("window", -3), ("backend", "xformers")]
)
def test_impossible_masks_are_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        Mask(**{field: value})  # type: ignore[arg-type]
