"""edgeml: from a trained network to a measured engine on an edge device.

Folders follow the way of the data; imports go one way (see docs/architecture.md):
``artifact`` (shared words) < ``runtime`` (run, bench) < ``train`` < ``export`` < ``compress`` <
``report`` < ``cli``.
"""

__version__ = "0.1.0"
