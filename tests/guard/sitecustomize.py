"""Python imports this at its start in every process that a test starts: see connections.py."""

import connections

connections.install()
