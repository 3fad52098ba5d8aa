"""`python -m apnet2_tts_plugin`, the same as `apnet2`."""

import sys

from apnet2_tts_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main())
