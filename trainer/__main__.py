"""`python -m trainer`, the same as `gradtrain`."""

import sys

from trainer.cli import main

if __name__ == "__main__":  # a sweep's processes import this file under another name
    sys.exit(main())
