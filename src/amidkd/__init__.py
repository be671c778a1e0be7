"""amidkd: knowledge distillation for language models through α-mixture assistant distributions.

Import what you need from the layer that holds it: :mod:`amidkd.maths`, :mod:`amidkd.signals`,
:mod:`amidkd.kernels`, :mod:`amidkd.config`. This module loads none of them.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
