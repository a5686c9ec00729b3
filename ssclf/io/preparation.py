"""The way of every scan, in training and in prediction: read, find the brain, preprocess."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import get_args

from ssclf.config import PreprocessConfig, check_choice
from ssclf.domain.intensity import check_intensities, fill_background, foreground
from ssclf.domain.preprocessing import PreparedVolume, preprocess
from ssclf.domain.stripping import judge_stripping
from ssclf.domain.tolerance import length_at_least, length_at_most
from ssclf.domain.volume import Mask, Volume
from ssclf.errors import VolumeError
from ssclf.io.discovery.scans import Scan
from ssclf.io.extraction.deepbet import BrainExtractor
from ssclf.io.extraction.engines import Engine, extract_brain
from ssclf.io.volumes.read import read_volume, stack_contrasts

#: A brain outside this range is flagged: adults have 1.0 to 1.7 l (with its CSF), children from 0.8 l.
PLAUSIBLE_BRAIN_ML = (800.0, 2200.0)
#: Brain extraction looks at the first of these that a volume has: the engines were trained on T1.
_EXTRACTION_CONTRASTS = ("t1", "t1ce")


class SkullError(VolumeError):
    """A head with its skull, and nothing here to remove it with."""


@dataclass(frozen=True)
class SkullStrip:
    """How to treat skulls: with which engine, and whether in volumes that look stripped already, too."""

    engine: Engine
    only_heads: bool

    @staticmethod
    def parse(text: str) -> SkullStrip:
        """Read "auto" (deepbet, heads only), "auto:ENGINE" (heads only), ENGINE (every volume) or "none".

        Raises:
            ConfigError: anything else.
        """
        kind, _, name = text.partition(":")
        engine = (name or "deepbet") if kind == "auto" else text
        check_choice("skull-strip", engine, Engine)
        return SkullStrip(next(e for e in get_args(Engine) if e == engine), kind == "auto")


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
    engine: Engine


@lru_cache(maxsize=1)
def brain_extractor(models: tuple[Path, ...], threads: int = 1) -> BrainExtractor | None:
    """deepbet's networks, kept for the life of a process with what they have loaded; None without files."""
    return BrainExtractor(models, threads=threads) if models else None


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
    engine: Engine = "none" if how.only_heads and looks_stripped else how.engine
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
