"""Past answers on disk: bounded, private, erasable, and harmless when damaged."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.drafters.base import DrafterError
from edge_client.drafters.lookup.chain import ChainDrafter
from edge_client.drafters.lookup.history import HistoryDrafter
from edge_client.drafters.lookup.history_store import HistoryStore, Loaded

LETTERS, DIGITS = "sha256:aa", "sha256:bb"
ANSWER = [5, 6, 7, 8, 9, 10, 11, 12]


@pytest.fixture
def store(tmp_path: Path) -> HistoryStore:
    return HistoryStore(tmp_path / "data" / "history")


def test_answers_come_back_in_their_own_vocabulary(store: HistoryStore) -> None:
    assert store.load(LETTERS) == Loaded([])
    store.add(LETTERS, [1, 2, 3])
    store.add(DIGITS, [4])
    store.add(LETTERS, [(1 << 32) - 2])
    store.add(LETTERS, [])
    assert store.load(LETTERS) == Loaded([[1, 2, 3], [(1 << 32) - 2]])
    assert HistoryStore(store.folder).load(DIGITS) == Loaded([[4]])


def test_only_the_owner_may_read(store: HistoryStore) -> None:
    store.add(LETTERS, ANSWER)
    (file,) = store.files()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert [path.name for path in store.folder.iterdir()] == [file.name]


@settings(max_examples=40)
@given(answers=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=40), max_size=12), limit=st.integers(0, 200))
def test_a_file_is_never_larger_than_allowed(
    tmp_path_factory: pytest.TempPathFactory, answers: list[list[int]], limit: int
) -> None:
    store = HistoryStore(tmp_path_factory.mktemp("bounded"), limit_bytes=limit)
    for answer in answers:
        store.add(LETTERS, answer)
    kept = store.load(LETTERS)
    assert not kept.notices
    assert sum(file.stat().st_size for file in store.files()) <= limit
    for answer, whole in zip(reversed(kept.answers), reversed(answers), strict=False):
        assert whole[-len(answer) :] == answer
    if answers and limit >= 200:
        assert kept.answers


def test_erasing_leaves_nothing(store: HistoryStore) -> None:
    assert store.erase() == 0
    store.add(LETTERS, ANSWER)
    store.add(DIGITS, ANSWER)
    assert store.erase() == 2
    assert store.load(LETTERS) == Loaded([])
    assert not list(store.folder.iterdir())


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty", "huge count"])
def test_a_damaged_file_is_an_empty_one_with_a_notice(store: HistoryStore, damage: str) -> None:
    store.add(LETTERS, ANSWER)
    store.add(LETTERS, ANSWER)
    (file,) = store.files()
    content = bytearray(file.read_bytes())
    if damage == "cut":
        del content[-3:]
    elif damage == "flipped":
        content[-2] ^= 1
    elif damage == "foreign":
        content = bytearray(b"something else")
    elif damage == "empty":
        content.clear()
    else:
        content[19:23] = b"\xff" * 4
    file.write_bytes(content)
    drafter = HistoryDrafter(store)
    (notice,) = drafter.adopt_vocabulary(LETTERS, 100)
    assert "damaged" in notice
    assert str(file) in notice
    drafter.feed(ANSWER[:4])
    assert not len(drafter.candidates().ids)
    drafter.learn([0, *ANSWER], 1)
    assert store.load(LETTERS) == Loaded([ANSWER])


def test_a_file_that_cannot_be_read_is_a_notice(store: HistoryStore) -> None:
    store.add(LETTERS, ANSWER)
    (file,) = store.files()
    file.unlink()
    file.mkdir()
    (notice,) = store.load(LETTERS).notices
    assert "cannot be read" in notice


def test_a_disk_that_takes_nothing_is_told_once_until_it_takes_something(tmp_path: Path) -> None:
    folder = tmp_path / "history"
    drafter = HistoryDrafter(HistoryStore(folder))
    drafter.adopt_vocabulary(LETTERS, 100)
    for _ in range(2):
        folder.write_text("a file in the way")
        with pytest.raises(DrafterError, match=f"cannot be kept in {folder} .*answers themselves are whole"):
            drafter.learn([0, *ANSWER], 1)
        drafter.learn([0, *ANSWER], 1)
        folder.unlink()
        drafter.learn([0, *ANSWER], 1)
        assert HistoryStore(folder).load(LETTERS) == Loaded([ANSWER])
        HistoryStore(folder).erase()
        folder.rmdir()


def test_of_a_chain_the_others_learn_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = HistoryStore(tmp_path / "history")
    chain = ChainDrafter([HistoryDrafter(HistoryStore(tmp_path / "file" / "below")), HistoryDrafter(store)])
    chain.adopt_vocabulary(LETTERS, 100)
    with pytest.raises(DrafterError, match="cannot be kept"):
        chain.learn([0, *ANSWER], 1)
    assert store.load(LETTERS) == Loaded([ANSWER])


def test_what_was_answered_is_drafted_in_the_next_session(store: HistoryStore) -> None:
    drafter = HistoryDrafter(store)
    assert drafter.adopt_vocabulary(LETTERS, 100) == ()
    drafter.feed(ANSWER[:4])
    assert not len(drafter.candidates().ids)
    drafter.learn([0, 1, *ANSWER], 2)
    assert not len(drafter.candidates().ids)  # within a session nothing changes
    drafter.adopt_vocabulary(LETTERS, 100)
    assert drafter.candidates().ids.tolist() == [ANSWER[4]]
    drafter.adopt_vocabulary(DIGITS, 100)
    assert not len(drafter.candidates().ids)


def test_answers_with_ids_the_target_does_not_have_are_left_out(store: HistoryStore) -> None:
    store.add(LETTERS, ANSWER)
    drafter = HistoryDrafter(store)
    drafter.adopt_vocabulary(LETTERS, 8)
    drafter.feed(ANSWER[:2])
    assert not len(drafter.candidates().ids)
