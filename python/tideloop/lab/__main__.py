import sys

from tideloop.lab import main

sys.exit(main())
