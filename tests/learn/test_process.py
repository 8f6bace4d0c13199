import subprocess
import sys

from tests.learn.dead import dead_process
from tokred.learn.process import is_alive, me, name_of, show


def test_this_process_runs():
    assert is_alive(me()) is True
    assert is_alive(f"{me()}:a name may go on") is True


def test_a_process_that_has_ended_is_known_to_be_dead():
    assert is_alive(dead_process()) is False


def test_a_number_that_went_to_another_process_does_not_bring_the_dead_back():
    host, number, _ = me().split(":")
    assert is_alive(f"{host}:{number}:1") is False
    assert is_alive(f"{host}:{number}:") is True, "without its time a process is given the benefit of the doubt"


def test_a_process_that_only_waits_to_be_buried_is_dead():
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    name = name_of(process.pid)
    assert is_alive(name) is True
    assert process.stdin is not None
    process.stdin.close()
    while is_alive(name):  # it ends, and nobody has asked how
        pass
    process.wait()


def test_nothing_is_claimed_about_other_machines():
    assert is_alive("elsewhere:1:5") is None
    assert is_alive("nonsense") is None
    assert show("elsewhere:1:5") == "process 1 on elsewhere"
    assert show("") == "an unknown process"
