"""``python -m tideloop`` is the ``tideloop`` command."""

import sys

from tideloop.cli import main

sys.exit(main())
