"""Searches yield to what comes before and after them."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import os, threading
from serving.backend.priority import SEARCH_NICE, yield_to_answers
yield_to_answers()
yield_to_answers()
seen = [os.getpriority(os.PRIO_PROCESS, 0)]
thread = threading.Thread(target=lambda: seen.append(os.getpriority(os.PRIO_PROCESS, 0)))
thread.start()
thread.join()
print(seen, SEARCH_NICE)
"""


def test_a_process_that_searches_and_its_threads_yield_however_often_it_says_so():
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert found.stdout == "[5, 5] 5\n"
    assert os.getpriority(os.PRIO_PROCESS, 0) < 5


BESIDE = """
import os
from pathlib import Path
from serving.backend.priority import yield_to_servers
yield_to_servers()
group = Path("/proc/self/autogroup")
print(os.getpriority(os.PRIO_PROCESS, 0), group.read_text() if group.exists() else "")
"""


def test_who_works_beside_a_server_yields_with_its_session_too():
    """A nice value counts inside a session only; a session of others is not touched."""
    own, shared = (
        subprocess.run(
            [sys.executable, "-c", BESIDE], capture_output=True, text=True, check=True, start_new_session=own
        ).stdout.split()
        for own in (True, False)
    )
    assert own[0] == shared[0] == "19"
    if own[1:]:  # empty where a cgroup shares the cores instead
        assert own[-1] == "10"
    group = Path("/proc/self/autogroup")  # empty, too, for whoever has the session of init
    assert shared[1:] == (group.read_text() if group.exists() else "").split()
