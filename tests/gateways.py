"""Whether the registries under test have gateways: `make test-gateways` runs many tests again with them."""

import os

GATEWAYS = int(os.environ.get("TEST_GATEWAYS", "0"))
"""How many."""
