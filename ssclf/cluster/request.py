"""What `ssclf predict --ray` refuses before anything starts; imports no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ssclf.errors import ConfigError

#: What `--out` says when nobody has said anything, with and without a cluster.
TABLE, FOLDER = "results.csv", "results"


def check_request(scans: Sequence[str], out: str, unfit: Mapping[str, object]) -> tuple[str, str]:
    """What a run on a cluster reads and writes.

    Args:
        scans, out: as given on the command line; a URL stays one.
        unfit: options that do not go with `--ray`, and their values.

    Returns:
        the one source, and the folder for the results.

    Raises:
        ConfigError: what was asked for does not go together.
    """
    for option, value in unfit.items():
        if value:
            raise ConfigError(f"{option}: does not go with --ray; see docs/cluster.md.")
    if len(scans) != 1:
        raise ConfigError(
            f"--ray: expected one folder, manifest or URL, found {len(scans)}; put several into a manifest."
        )
    if out == TABLE:
        return scans[0], FOLDER
    if out.lower().endswith(".csv"):
        raise ConfigError(f"--out {out}: with --ray it is a folder; name the table with --csv.")
    return scans[0], out
