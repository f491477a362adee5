"""`regbench train` as a file. Lightning's DDP launcher starts it again, by its path, for each further process."""

import sys

from regbench.cli import train

if __name__ == "__main__":
    sys.exit(train())
