"""Find out what the neurons of a classifier respond to, change them, and test honestly whether it helped.

The public names are listed in ``__init__.pyi`` and imported on first use: ``import emodissect`` takes no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
