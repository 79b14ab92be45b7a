"""What trained without a fast mode is told once, and kept for the summary."""

from __future__ import annotations

from tests.helpers import Notices
from umbel.core.wire.work import MOST_FALLBACKS, Work
from umbel.server.accounts import Accounts
from umbel.server.checkpoint import Progress
from umbel.server.receiver import Report

WORK = Work("run", "a", 1, 0, "train", "", 0)


def test_it_is_told_once_whatever_round_or_node_says_it_and_kept_in_each_progress() -> None:
    heard = Notices()
    accounts, progress = Accounts(heard), Progress()
    lost = progress.copy()  # of a round that does not come to its end, and begins again
    accounts.take(Report(fallbacks=["no compiler", "no compiler"]), WORK, lost)
    assert not progress.fallbacks
    accounts.take(Report(fallbacks=["no compiler"]), WORK, progress)
    accounts.take(Report(fallbacks=["no memory", "no compiler"]), WORK, progress)
    assert heard.texts == progress.fallbacks == ["no compiler", "no memory"]


def test_after_a_resume_it_is_told_again_and_counted_once() -> None:
    heard, progress = Notices(), Progress(fallbacks=["no compiler"])
    Accounts(heard).fall_back("no compiler", progress)
    assert heard.texts == progress.fallbacks == ["no compiler"]


def test_a_node_that_says_something_else_each_time_is_listened_to_up_to_a_number() -> None:
    heard = Notices()
    accounts, progress = Accounts(heard), Progress()
    for number in range(100):
        accounts.take(Report(fallbacks=[f"text {number}"]), WORK, progress)
    assert heard.texts == progress.fallbacks == [f"text {number}" for number in range(MOST_FALLBACKS)]
