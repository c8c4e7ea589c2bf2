"""Version of the package, read by the build. Imports nothing."""

__version__ = "0.1.0"
