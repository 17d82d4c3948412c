"""The worker: requests report while they run, and stop when they are told to."""

import threading

import pytest

from assistant.errors import BadInput
from assistant.page.worker import Done, Report, Stopped, Worker, error_line


def test_a_request_reports_and_ends():
    worker = Worker()

    def work(report):
        report("a", 1)
        report()  # only asks whether to stop
        return 5

    assert list(worker.run(work, threading.Event())) == [Report(("a", 1)), Done(5)]
    assert worker.run_to_end(work, threading.Event()) == 5


def test_the_errors_of_a_request_are_raised():
    def refuse(report):
        raise BadInput("no")

    with pytest.raises(BadInput, match="no"):
        list(Worker().run(refuse, threading.Event()))


def test_stopping_really_stops():
    worker, stop, steps = Worker(), threading.Event(), []

    def work(report):
        for k in range(1000):
            steps.append(k)
            report("step")
            if k == 3:
                stop.set()

    with pytest.raises(Stopped):
        list(worker.run(work, stop))
    assert steps == [0, 1, 2, 3, 4]


def test_a_visitor_who_leaves_stops_the_request():
    worker, gone, resumed, steps = Worker(), threading.Event(), threading.Event(), []

    def work(report):
        report("first")
        resumed.wait(10)
        report("second")
        steps.append("never")

    events = worker.run(work, gone)
    next(events)
    events.close()
    resumed.set()
    assert worker.call(gone.is_set) and not steps  # in its turn, after what was stopped


def test_errors_are_told_in_one_line(tmp_path, capsys):
    file = tmp_path / "holiday.png"
    assert error_line(Stopped()) == "stopped"
    assert error_line(BadInput(f"no image at {file}"), file) == "no image at holiday.png"
    assert "secret" not in error_line(RuntimeError("a secret inside"))
    assert "a secret inside" in capsys.readouterr().err
