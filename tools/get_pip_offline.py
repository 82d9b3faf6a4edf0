"""Stand-in for get-pip.py where ansible-test's own download host is out of reach: pip comes from the interpreter itself.

ansible-test documents this place for a bootstrap script that was fetched by other means; `make sanity` puts this file
there only when the download is not possible. The arguments are those that ansible-test gives to get-pip.py.
"""

import ensurepip
import os
import subprocess
import sys

environment = dict(os.environ)  # ensurepip switches pip's configuration off for the whole process
ensurepip.bootstrap(default_pip=True)
wanted = [a for a in sys.argv[1:] if not a.startswith("--no-")]
subprocess.check_call([sys.executable, "-m", "pip", "install", "--upgrade", *wanted], env=environment)
