"""`aurora-ds doctor`: what would stop a run on these hosts, found before it starts.

run.py asks and prints; contact.py reaches the hosts; probe.py and meet.py run on them; checks.py judges what they said.
"""

from aurora_ds.doctor.run import run

__all__ = ["run"]
