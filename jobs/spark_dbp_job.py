"""Entry for spark-submit: ``spark-submit --py-files spark_dbp-*.whl spark_dbp_job.py run CONF``."""

import sys

from spark_dbp.cli import main

sys.exit(main())
