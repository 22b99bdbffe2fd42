"""Tables and files of a result. Imports neither the training stack nor the compression."""

from .write import write

__all__ = ["write"]
