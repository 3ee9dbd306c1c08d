import os
import signal
import subprocess
import sys

import pytest

from trainer.signals import Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_noticed_and_the_handlers_come_back(number):
    before = signal.getsignal(number)
    with Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert signals.received == number
    assert signal.getsignal(number) is before


def test_the_second_ends_the_process():
    program = (
        "import os, signal, threading\nfrom trainer.signals import Signals\n"
        "with Signals() as signals:\n"
        "    signals.before_exit = lambda number: print('last words', number, flush=True)\n"
        "    for _ in range(2): os.kill(os.getpid(), signal.SIGTERM)\n"
        "    threading.Event().wait(60)\n"
        "    print('still here')\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (found.returncode, found.stdout) == (143, "last words 15\n")
