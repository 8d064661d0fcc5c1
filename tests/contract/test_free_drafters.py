"""Lookups and chains keep the contract of `edge_client.drafters.base`; the laws that need no transformers model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.drafters import load_drafter
from edge_client.drafters.base import ANY_VOCABULARY, Candidates, Drafter, DrafterError
from edge_client.drafters.lookup.chain import MAX_LAG_TOKENS, ChainDrafter
from edge_client.drafters.lookup.history import HistoryDrafter
from edge_client.drafters.lookup.history_store import HistoryStore
from edge_client.drafters.lookup.ngram import NgramDrafter
from edge_client.drafters.settings import DeviceSettings

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
VOCABULARY_SIZE = 4096
FINGERPRINT = "sha256:x"
FEW_IDS = 5  # so that there is much to find
CONTEXT_TOKENS = 120
Load = Callable[[], Drafter]


def model(name: str, context_tokens: int) -> Drafter:
    drafter = load_drafter(DEMO / name, settings=DeviceSettings(context_tokens=context_tokens))
    assert drafter is not None
    return drafter


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> HistoryStore:
    store = HistoryStore(tmp_path_factory.mktemp("history"))
    for seed in range(3):
        store.add(FINGERPRINT, ids(50, seed))
    return store


@pytest.fixture(
    scope="module",
    params=["ngram", "history", "ngram+history", "ngram+onnx", "ngram+gguf", "sure+gguf", "staged+gguf", "staged+onnx"],
)
def load(request: pytest.FixtureRequest, store: HistoryStore) -> Load:
    """Opens a fresh drafter. Some chains go to extremes: a lookup that is always trusted, so that the model lags
    far behind, and one that is never, so that the model evaluates every block ahead."""
    few = {"context_tokens": CONTEXT_TOKENS}

    def opened() -> Drafter:
        made: dict[str, Callable[[], Drafter]] = {
            "ngram": lambda: NgramDrafter(**few),
            "history": lambda: HistoryDrafter(store, **few),
            "ngram+history": lambda: ChainDrafter([NgramDrafter(**few), HistoryDrafter(store, **few)]),
            "ngram+onnx": lambda: ChainDrafter([NgramDrafter()], model("drafter-onnx", CONTEXT_TOKENS)),
            "ngram+gguf": lambda: ChainDrafter([NgramDrafter()], model("drafter.gguf", CONTEXT_TOKENS)),
            "staged+gguf": lambda: ChainDrafter(
                [NgramDrafter()], model("drafter.gguf", CONTEXT_TOKENS), min_probability=1.0, min_staged=1e-9
            ),
            "staged+onnx": lambda: ChainDrafter(
                [NgramDrafter()], model("drafter-onnx", CONTEXT_TOKENS), min_probability=1.0, min_staged=1e-9
            ),
            "sure+gguf": lambda: ChainDrafter(
                [NgramDrafter()], model("drafter.gguf", CONTEXT_TOKENS), min_probability=1e-9, min_trust=0.0
            ),
        }
        drafter = made[request.param]()
        drafter.adopt_vocabulary(FINGERPRINT, VOCABULARY_SIZE)
        return drafter

    return opened


@pytest.fixture
def drafter(load: Load) -> Drafter:
    return load()


@pytest.fixture(scope="module")
def pair(load: Load) -> tuple[Drafter, Drafter]:
    """Two for many examples: loading a model takes longer than an example."""
    return load(), load()


def ids(count: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, FEW_IDS, count)]


def assert_same(found: Candidates, expected: Candidates, tolerance: float = 0.0) -> None:
    """tolerance: a model that is fed in other pieces adds up in another order."""
    if not tolerance:
        np.testing.assert_array_equal(found.ids, expected.ids)
        np.testing.assert_array_equal(found.log_probs, expected.log_probs)
        return
    assert len(found.ids) == len(expected.ids)
    values = dict(zip(expected.ids.tolist(), np.exp(expected.log_probs), strict=True))
    for token, log_prob in zip(found.ids[:8].tolist(), found.log_probs, strict=False):
        assert values[token] == pytest.approx(np.exp(log_prob), abs=tolerance)


def test_candidates_are_sorted_and_at_most_a_distribution(drafter: Drafter) -> None:
    drafter.feed(ids(40))
    found = drafter.candidates()
    assert found.ids.dtype == np.int64
    assert found.log_probs.dtype == np.float64
    assert len(set(found.ids)) == len(found.ids) > 0
    assert (np.diff(found.log_probs) <= 0).all()
    assert np.exp(found.log_probs).sum() < 1.0 + 1e-6


def test_after_a_rollback_it_is_a_fresh_drafter(load: Load, drafter: Drafter) -> None:
    fresh = load()
    shared, dropped, new = ids(30, seed=3), ids(40, seed=4), ids(6, seed=5)
    for piece in (shared, dropped):
        drafter.feed(piece)
    drafter.rollback(len(shared))
    assert drafter.length == len(shared)
    fresh.feed(shared)
    for token in new:
        drafter.feed([token])
        fresh.feed([token])
        assert_same(drafter.candidates(), fresh.candidates())
    drafter.rollback(0)
    drafter.feed(shared)
    fresh.rollback(len(shared) + 1)
    fresh.rollback(0)
    fresh.feed(shared)
    assert_same(drafter.candidates(), fresh.candidates())


Steps = st.lists(
    st.one_of(
        st.lists(st.integers(0, FEW_IDS - 1), min_size=1, max_size=20),  # feed these
        st.floats(0, 1),  # roll back to this share of the length
        st.none(),  # ask
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=30)
@given(steps=Steps, last=st.integers(0, FEW_IDS - 1))
def test_any_feeds_and_rollbacks_end_like_one_feed(
    pair: tuple[Drafter, Drafter], steps: list[list[int] | float | None], last: int
) -> None:
    held, fed = list[int](), False
    drafter, fresh = pair
    drafter.rollback(0)
    fresh.rollback(0)
    for step in steps:
        if isinstance(step, list) and len(held) + len(step) < CONTEXT_TOKENS:
            drafter.feed(step)
            held += step
            fed = True
        elif isinstance(step, float):
            keep = round(step * len(held))
            drafter.rollback(keep)
            fed &= keep == len(held)
            del held[keep:]
        elif fed:
            drafter.candidates()
        assert drafter.length == len(held)
    drafter.feed([last])
    held.append(last)
    fresh.feed(held)
    assert_same(drafter.candidates(), fresh.candidates(), 3e-2)


def test_a_rollback_that_drops_tokens_forgets_the_candidates(drafter: Drafter) -> None:
    drafter.feed(ids(8))
    before = drafter.candidates()
    drafter.rollback(8)
    assert_same(drafter.candidates(), before)
    drafter.rollback(7)
    with pytest.raises(DrafterError, match="feed"):
        drafter.candidates()
    for length in (-1, 8):
        with pytest.raises(ValueError, match=f"cannot keep {length} tokens"):
            drafter.rollback(length)


@pytest.mark.parametrize("bad", [-1, VOCABULARY_SIZE, 1 << 31, 1 << 40])
def test_what_is_refused_changes_nothing(load: Load, drafter: Drafter, bad: int) -> None:
    with pytest.raises(DrafterError, match="feed"):
        drafter.candidates()
    drafter.feed(ids(8))
    before = drafter.candidates()
    for tokens, error, words in (
        ([1, bad, 2], ValueError, f"token id {bad} is outside"),
        ([], ValueError, "empty"),
        (ids(CONTEXT_TOKENS), DrafterError, f"{CONTEXT_TOKENS} tokens"),
    ):
        with pytest.raises(error, match=words):
            drafter.feed(tokens)
    assert drafter.length == 8
    assert_same(drafter.candidates(), before)
    untouched = load()
    untouched.feed(ids(8))
    untouched.candidates()
    for other in (drafter, untouched):
        other.feed([3])
    assert_same(drafter.candidates(), untouched.candidates())


def test_the_context_ends_where_it_says(drafter: Drafter) -> None:
    assert drafter.info.context_tokens == CONTEXT_TOKENS
    drafter.feed(ids(CONTEXT_TOKENS - 1))
    drafter.feed([1])
    with pytest.raises(DrafterError, match=f"{CONTEXT_TOKENS} tokens"):
        drafter.feed([1])
    drafter.rollback(CONTEXT_TOKENS - 2)
    drafter.feed([1, 2])
    drafter.candidates()


def test_closing_twice_is_closing_once(drafter: Drafter) -> None:
    drafter.feed([1])
    drafter.close()
    drafter.close()
    with pytest.raises(DrafterError, match="closed"):
        drafter.feed([1])
    with pytest.raises(DrafterError, match="closed"):
        drafter.candidates()


def test_only_models_have_a_vocabulary_of_their_own(drafter: Drafter) -> None:
    known = drafter.info.vocabulary_fingerprint
    assert (known == ANY_VOCABULARY) == drafter.info.name.endswith(("ngram", "history"))


@pytest.mark.parametrize("setting", ["threads", "top_candidates", "context_tokens"])
@pytest.mark.parametrize("kind", [NgramDrafter, HistoryDrafter])
def test_settings_below_one_are_refused(kind: Callable[..., Drafter], setting: str) -> None:
    with pytest.raises(DrafterError, match=setting):
        kind(**{setting: 0})


# --- chains ----------------------------------------------------------------------------------------------------------


class Counting(NgramDrafter):
    """A model that says 7, and how often and how much it was fed."""

    def __init__(self) -> None:
        super().__init__()
        self.feeds: list[int] = []

    def feed(self, tokens: object) -> None:
        super().feed(tokens)  # type: ignore[arg-type]
        self.feeds.append(len(tokens))  # type: ignore[arg-type]

    def candidates(self) -> Candidates:
        return Candidates(np.array([7]), np.array([-0.5]))


def test_the_model_sees_only_what_the_lookup_does_not_carry() -> None:
    counting = Counting()
    chain = ChainDrafter([NgramDrafter()], counting, min_trust=0.5)
    text = list(range(10, 40))
    chain.feed([*text, *text[:8]])
    for token in text[8:28]:  # a match of 8 and more: the lookup is sure
        assert chain.candidates().ids[0] == token
        chain.feed([token])
    assert counting.feeds == []
    chain.feed([99])
    assert chain.candidates().ids.tolist() == [7]
    assert sum(counting.feeds) == chain.length == counting.length
    assert len(counting.feeds) <= 2


def test_a_lookup_has_to_earn_trust_and_loses_it() -> None:
    chain = ChainDrafter([NgramDrafter()], Counting())
    text = list(range(10, 60))
    chain.feed([*text, *text[:6]])
    assert chain.candidates().ids.tolist() == [7]
    chain.feed(text[6:20])
    assert chain.candidates().ids[0] == text[20]
    chain.feed([99, 98])
    for start in (20, 30, 40):  # two tokens that stood side by side, and then others than before
        chain.feed([*text[start : start + 3], 70 + start, 71 + start])
    chain.feed(text[10:14])
    assert chain.candidates().ids.tolist() == [7]
    chain.rollback(len(text) + 19)
    chain.feed([text[19]])
    assert chain.candidates().ids[0] == text[20]


@pytest.mark.parametrize("file", ["drafter.gguf", "drafter-onnx"])
def test_a_model_says_after_a_block_what_it_says_token_by_token(file: str) -> None:
    alone, staged = model(file, 400), model(file, 400)
    assert staged.reads_blocks == (file == "drafter.gguf")  # the other one gives one row only
    tolerance = 5e-2 if staged.reads_blocks else 0.1  # which is in 8 bits, scaled by batch
    text, block = ids(20), ids(9, 1)
    alone.feed(text)
    expected = []
    for token in block:
        alone.feed([token])
        expected.append(alone.candidates())
    found = staged.feed_block([*text, *block], len(block))
    assert staged.length == alone.length
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs, tolerance)
    assert_same(staged.candidates(), found[-1])
    for last in (0, 3):
        with pytest.raises(ValueError, match="cannot give"):
            staged.feed_block([1, 2], last)
    by_default = Drafter.feed_block(alone, [1, 2, 3], 2)
    assert_same(staged.feed_block([1, 2, 3], 2)[1], by_default[1], tolerance)
    staged.rollback(25)
    staged.feed(block[5:])
    assert_same(staged.candidates(), found[-1], tolerance)
    alone.close()
    staged.close()


class Blocks(Counting):
    """A model that reads blocks and agrees with what stands in `says`."""

    def __init__(self, says: list[int]) -> None:
        super().__init__()
        self._says = says

    @property
    def reads_blocks(self) -> bool:
        return True

    def feed_block(self, tokens: object, last: int) -> list[Candidates]:
        self.feed(tokens)
        return [Candidates(np.array([self._says[n]]), np.array([-0.5])) for n in range(self.length - last, self.length)]


def test_a_looked_up_block_is_evaluated_at_once_and_walked_along() -> None:
    text = list(range(10, 40))
    says = [*text, *text[:14], 99, 7, 7, 7, 7]
    blocks = Blocks(says[1:])
    chain = ChainDrafter([NgramDrafter()], blocks, min_trust=1.1, min_staged=0.05)
    chain.feed(says[:32])
    for position in range(32, 40):
        assert chain.candidates().ids.tolist() == says[position : position + 1]
        chain.feed(says[position : position + 1])
    assert len(blocks.feeds) == 2  # eight guesses for two evaluations
    assert blocks.length > chain.length
    chain.feed([88])  # not what the block says
    assert blocks.length == chain.length - 1
    assert chain.candidates().ids.tolist() == [7]
    assert blocks.length == chain.length


def test_the_model_never_lags_far_behind() -> None:
    counting = Counting()
    chain = ChainDrafter([NgramDrafter()], counting)
    for _ in range(40):
        chain.feed([5] * 10)
        assert chain.length - counting.length <= MAX_LAG_TOKENS
