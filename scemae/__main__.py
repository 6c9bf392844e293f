import sys

from scemae.cli import main

sys.exit(main())
