"""The budget of the tests: what it reads, what it says, when it fails."""

from __future__ import annotations

import json

import pytest

from tests import budget

REPORT = """<testsuites><testsuite time="{wall}">
<testcase classname="tests.test_a" name="test_one[x]@test_a" time="4.0"/>
<testcase classname="tests.room.test_a" name="test_one[y]@test_a" time="2.0"/>
<testcase classname="tests.room.test_b" name="test_two" time="0.01"/>
</testsuite></testsuites>"""


@pytest.fixture
def report(tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "RECORDED", tmp_path / "durations.json")
    path = tmp_path / "report.xml"
    path.write_text(REPORT.format(wall=7))
    return path


def test_the_record_has_means_of_what_takes_time(report):
    budget.record(report)
    assert json.loads(budget.RECORDED.read_text()) == {"test_a.py": {"test_one": 3.0}}


def test_above_the_limit_it_fails_and_names_what_grew(report, capsys):
    budget.RECORDED.write_text(json.dumps({"test_a.py": {"test_one": 0.5}}))
    assert budget.check(report, 7) == 0
    assert capsys.readouterr().out == "3 tests took 7 s of the 7 s that they may.\n"
    assert budget.check(report, 6) == 1
    assert "these files grew: test_a.py +5 s\n" in capsys.readouterr().out
