"""Who is in time, by hand."""

from __future__ import annotations

from umbel.core.virtual.turns import Places, Turn, turn

# Clients 4, 2 and 9 are back at 12, 13 and 15; 1 and 7 at 18.
ENDS = {1: 18.0, 2: 13.0, 4: 12.0, 7: 18.0, 9: 15.0}


def test_all_are_waited_for():
    assert turn(ENDS, 10.0, 5) == Turn((1, 2, 4, 7, 9), (), 18.0)


def test_the_first_are_taken_and_the_phase_ends_with_the_last_of_them():
    assert turn(ENDS, 10.0, 3) == Turn((2, 4, 9), (1, 7), 15.0)
    assert turn(ENDS, 10.0, 4) == Turn((1, 2, 4, 9), (7,), 18.0)  # of two at once, the lower number


def test_a_deadline_cuts_off_and_is_waited_for():
    assert turn(ENDS, 10.0, 5, deadline=16.0) == Turn((2, 4, 9), (1, 7), 16.0)
    assert turn(ENDS, 10.0, 5, deadline=15.0) == Turn((2, 4, 9), (1, 7), 15.0)  # in time is up to the deadline
    assert turn(ENDS, 10.0, 5, deadline=18.0) == Turn((1, 2, 4, 7, 9), (), 18.0)


def test_the_first_within_a_deadline_end_the_phase_before_it():
    assert turn(ENDS, 10.0, 2, deadline=16.0) == Turn((2, 4), (1, 7, 9), 13.0)


def test_as_many_are_waited_for_as_are_needed():
    assert turn(ENDS, 10.0, 5, least=2, deadline=11.0) == Turn((2, 4), (1, 7, 9), 13.0)
    assert turn(ENDS, 10.0, 5, least=4, deadline=16.0) == Turn((1, 2, 4, 9), (7,), 18.0)


def test_a_phase_without_clients_ends_as_it_begins():
    assert turn({}, 10.0, 0) == Turn((), (), 10.0)


def test_the_first_of_each_group_are_taken_up_to_its_places():
    groups = (0, 0, 0, 0, 0, 0, 0, 1, 0, 1)  # of clients 7 and 9 another
    assert turn(ENDS, 10.0, 3, places=Places(groups, (2, 1))) == Turn((2, 4, 9), (1, 7), 15.0)
    assert turn(ENDS, 10.0, 3, places=Places(groups, (1, 2))) == Turn((4, 7, 9), (1, 2), 18.0)
    assert turn(ENDS, 10.0, 3, deadline=16.0, places=Places(groups, (1, 2))) == Turn((4, 9), (1, 2, 7), 16.0)
    # Where a group has too few, others take their places as far as they are needed.
    assert turn(ENDS, 10.0, 4, places=Places(groups, (1, 3))) == Turn((4, 7, 9), (1, 2), 18.0)
    assert turn(ENDS, 10.0, 4, least=4, places=Places(groups, (1, 3))) == Turn((2, 4, 7, 9), (1,), 18.0)
