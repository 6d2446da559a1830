"""Run by test_resume_matrix.py on each rank: training commands one after another, each in a process group of its own.

Argument: a JSON file with jobs {"arguments": of the training command, "port": where its ranks meet}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from aurora_ds.train import main

if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        if "RANK" in os.environ:
            os.environ["MASTER_PORT"] = str(job["port"])
        status = main(job["arguments"])
        if status:
            sys.exit(status)
