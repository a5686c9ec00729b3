"""ssclf: a spatiospatial classifier of brain MR volumes. Research use only."""

__version__ = "0.1.0"
