"""The way of every scan, in training and in prediction: read, find the brain, preprocess."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ssclf.config import PreprocessConfig, SkullStrip, StripEngine
from ssclf.domain.intensity import check_intensities, fill_background, foreground
from ssclf.domain.preprocessing import PreparedVolume, preprocess
from ssclf.domain.stripping import judge_stripping
from ssclf.domain.tolerance import length_at_least, length_at_most
from ssclf.domain.volume import Mask, Volume
from ssclf.errors import ConfigError, VolumeError
from ssclf.io.discovery.scans import Scan
from ssclf.io.extraction.deepbet import BrainExtractor
from ssclf.io.extraction.engines import extract_brain
from ssclf.io.extraction.owner import OwnerAddress
from ssclf.io.volumes.read import read_volume, stack_contrasts

#: A brain outside this range is flagged: adults have 1.0 to 1.7 l (with its CSF), children from 0.8 l.
PLAUSIBLE_BRAIN_ML = (800.0, 2200.0)
#: Brain extraction looks at the first of these that a volume has: the engines were trained on T1.
_EXTRACTION_CONTRASTS = ("t1", "t1ce")


class SkullError(VolumeError):
    """A head with its skull, and nothing here to remove it with."""


@dataclass(frozen=True)
class PreparedScan:
    """Attributes:
    volume: what the network sees, with every flag found on the way.
    original: the scan as read, in its own orientation and spacing.
    brain: (D, H, W) mask on the original's grid.
    engine: what removed the skull, "none" where it was gone already (or taken to be).
    """

    volume: PreparedVolume
    original: Volume
    brain: Mask
    engine: StripEngine


@lru_cache(maxsize=1)
def brain_extractor(
    models: tuple[Path, ...], threads: int = 1, owner: OwnerAddress | None = None
) -> BrainExtractor | None:
    """deepbet's networks, kept for the life of a process with what they have loaded; None without files."""
    return BrainExtractor(models, threads=threads, owner=owner) if models else None


def prepare_scan(
    scan: Scan,
    config: PreprocessConfig,
    *,
    skull_strip: str = "auto",
    extractor: BrainExtractor | None = None,
    work: Path | None = None,
    threads: int = 1,
) -> PreparedScan:
    """Turn a scan into network input.

    Args:
        scan: one source of voxels per contrast of the config.
        skull_strip: see `SkullStrip.parse`.
        extractor: deepbet's networks; without them a head is refused where they would be needed.
        work: existing private folder for what has to be unpacked or converted; None: the system's.
        threads: cores for brain extraction.

    Raises:
        VolumeError: the scan cannot be read or is no brain volume.
        SkullError: it has its skull, and deepbet's networks are needed and not given.
        MissingDependencyError: the engine is a program that is not installed.
    """
    how = SkullStrip.parse(skull_strip)
    if scan.problem:
        raise VolumeError(scan.problem)
    volumes = [read_volume(source, work) for source in scan.contrasts]
    original = stack_contrasts(volumes, config.contrasts)
    original = dataclasses.replace(original, data=fill_background(original.data))
    check_intensities(original.data)
    flags = list(original.flags)
    looks_stripped = judge_stripping(original).stripped
    engine: StripEngine = "none" if how.only_heads and looks_stripped else how.engine
    if engine == "none":
        brain = foreground(original.data)
        if not looks_stripped:
            flags.append("assumed_stripped")
    else:
        if engine == "deepbet" and extractor is None:
            raise SkullError(
                "the volume does not look skull-stripped, and there is no brain extraction here; strip it, "
                "choose an engine with --skull-strip, or take it as it is with --assume-stripped."
            )
        channel = next((config.contrasts.index(c) for c in _EXTRACTION_CONTRASTS if c in config.contrasts), 0)
        brain = extract_brain(
            original, engine, extractor=extractor, work_dir=work, threads=threads, channel=channel
        )
        flags.append("stripped_by_ssclf")
    prepared = preprocess(original, config, brain)
    low, high = PLAUSIBLE_BRAIN_ML
    if not (length_at_least(prepared.brain_ml, low) and length_at_most(prepared.brain_ml, high)):
        flags.append("implausible_brain_volume")
    prepared = dataclasses.replace(prepared, flags=tuple(dict.fromkeys(flags)))
    return PreparedScan(prepared, original, brain, engine)


def preprocess_files(
    sources: Path | str | Sequence[Path | str],
    config: PreprocessConfig | None = None,
    *,
    skull_strip: str = "auto",
    extraction: Sequence[Path] = (),
    threads: int = 1,
) -> PreparedVolume:
    """Turn one scan into network input, exactly as `ssclf preprocess` and `ssclf predict` do.

    Args:
        sources: a volume (NIfTI, MGZ, NRRD, MetaImage), or a folder, zip or file with one DICOM series; for several
            contrasts one for each, in the config's order, all on one grid.
        config: None for the paper's (`--preset paper`); a bundle's own are in `bundle.spec.preprocess`.
        skull_strip: "auto" strips what is not stripped, "none" takes the volume as it is; see docs/preprocessing.md.
        extraction: deepbet's networks as files, such as `bundle.extraction`; needed for a head with its skull.
        threads: cores for brain extraction.

    Returns:
        data (C, D, H, W) float32 in [0, 1], background 0, and its affine; doubts are in `flags`.

    Raises:
        VolumeError: a file cannot be read or is no brain volume, in one line.
        ConfigError: `skull_strip` is unknown, or the number of sources is not that of the config's contrasts.
    """
    config = config or PreprocessConfig()
    paths = [Path(s) for s in ([sources] if isinstance(sources, (str, Path)) else sources)]
    if len(paths) != len(config.contrasts):
        raise ConfigError(
            f"sources: expected one for each of {', '.join(config.contrasts)}, found {len(paths)}."
        )
    scan = Scan(paths[0].as_posix(), tuple(paths))
    extractor = brain_extractor(tuple(extraction), threads)
    return prepare_scan(scan, config, skull_strip=skull_strip, extractor=extractor, threads=threads).volume
