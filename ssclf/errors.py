"""Every exception that ssclf raises on purpose.

SsclfError
├── ConfigError             a setting that cannot be
├── VolumeError             one volume cannot be used: costs its own row, never the run
├── DatasetError            a cohort cannot be used: manifest, labels, folders
│   └── LeakageError        a subject on both sides of a split
├── ModelError              a bundle, checkpoint or weights file cannot be used
│   └── ParityError         exported networks disagree with the trained one
├── MissingDependencyError  an extra or an outside program is not installed
├── ResourceError           the machine had too little: memory, processes that live
└── OutputError             a result cannot be written where it was asked for

A message says which file, what was expected, what was found and what to do next. It carries
file names, never header contents.
"""

from __future__ import annotations


class SsclfError(Exception):
    """Base of all errors; `exit_code` is what the command line returns for it."""

    exit_code = 1


class ConfigError(SsclfError):
    pass


class VolumeError(SsclfError):
    pass


class DatasetError(SsclfError):
    pass


class LeakageError(DatasetError):
    pass


class ModelError(SsclfError):
    pass


class ParityError(ModelError):
    pass


class MissingDependencyError(SsclfError):
    pass


class ResourceError(SsclfError):
    pass


class OutputError(SsclfError):
    pass
