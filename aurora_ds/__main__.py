"""`python -m aurora_ds` is the same as `aurora-ds`."""

import sys

from aurora_ds.cli import main

sys.exit(main())
