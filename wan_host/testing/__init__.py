"""What the tests of wan-host and of its plugins share: it ships with the host, so that strangers can use it as well.

contract        classes that the tests of a plugin subclass, one for each hook
lane samples    a lane in this process, and what hooks are given
instant         a model that costs nothing and fails on demand
outside         references, a store and a receiver behind HTTP, with an injector of faults
receiver server store remote_store   each of these for itself
process         a worker as users run it; trial kills it
"""

import sys

if "pytest" in sys.modules:  # what fails in a contract is shown as in a test
    sys.modules["pytest"].register_assert_rewrite("wan_host.testing.contract")
