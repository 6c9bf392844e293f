import sys

from scemae.cli.main import main

sys.exit(main())
