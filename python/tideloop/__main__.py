"""``python -m tideloop`` is the ``tideloop`` command."""

import sys

from tideloop.cli import main

if __name__ == "__main__":
    sys.exit(main())
