"""A child for a test of `child_process`: answers, prints past Python, and stays for longer than its deadline."""

import os
import sys
import time

from edge_client.child_process import serve_task

if __name__ == "__main__":
    sys.argv[1] = "0"  # its own deadline: the parent's is later
    task, answer = serve_task()
    answer.write(task)
    answer.flush()
    os.write(1, b"printed by native code\n")
    time.sleep(600)
