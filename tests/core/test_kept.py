"""What was made of an object is made once, told apart by the object, and dropped oldest first."""

from __future__ import annotations

from umbel.core.kept import Kept


def test_it_is_made_once_for_an_object_and_again_for_its_equal() -> None:
    made: list[list[int]] = []
    kept: Kept[list[int], int] = Kept(lambda source: made.append(source) or len(made))  # type: ignore[func-returns-value]
    first, equal = [1, 2], [1, 2]
    assert (kept(first), kept(first), kept(equal), kept(first)) == (1, 1, 2, 1)
    assert len(made) == 2 and made[0] is first and made[1] is equal


def test_the_one_asked_for_longest_ago_goes_first_and_the_last_stays() -> None:
    made: list[str] = []
    kept: Kept[str, str] = Kept(lambda source: made.append(source) or source, size=len, limit=5)  # type: ignore[func-returns-value]
    assert [kept("aa"), kept("bbb"), kept("aa")] == ["aa", "bbb", "aa"] and len(kept) == 2
    kept("cc")  # seven: `bbb` goes, which was asked for before `aa`
    assert len(kept) == 2
    kept("aa")
    assert made == ["aa", "bbb", "cc"]
    assert kept("longer than all") == "longer than all" and len(kept) == 1
