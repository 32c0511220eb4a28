import sys

from tideloop.lab.cli import main

sys.exit(main())
