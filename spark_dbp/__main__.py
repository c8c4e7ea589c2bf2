"""``python -m spark_dbp``: the command line."""

import sys

from spark_dbp.cli import main

sys.exit(main())
