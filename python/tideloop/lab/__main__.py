import sys

from tideloop.lab import main

if __name__ == "__main__":
    sys.exit(main())
