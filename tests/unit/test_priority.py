"""Searches yield to what comes before and after them."""

import os
import subprocess
import sys

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
