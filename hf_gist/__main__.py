"""`python -m hf_gist`: the `hf-gist` command."""

import sys

from hf_gist.commands.main import main


sys.exit(main())
