"""Synthetic brains for pretraining: a healthy one, with or without glioma, as any scanner might show it.

Other shapes, appearances and ranges than `ssclf.domain.lesions`, with which learning is measured. All that does not
depend on the label is drawn from streams of its own, so that the same seed gives every label the same place, anatomy,
findings and scanner. scipy is imported where it is used, since prediction does without it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssclf.config import check_choice
from ssclf.domain.generator import distractors, lesions, scanner
from ssclf.domain.generator.head import look_at
from ssclf.domain.generator.settings import GeneratorSettings
from ssclf.domain.synthetic import SyntheticLabel
from ssclf.domain.volume import Mask, Volume


def draw_brain(
    brain: Volume, label: SyntheticLabel, seed: Sequence[int], settings: GeneratorSettings | None = None
) -> tuple[Volume, Mask]:
    """Draw a brain of that label.

    Args:
        brain: network input of a healthy brain on T1: data (1, D, H, W) in [0, 1], background 0.
        seed: whole numbers from 0 on, the only source of randomness.

    Returns:
        the volume, float32 in [0, 1], background 0, on the same grid; and (D, H, W), where its lesions are, without
        their oedema.

    Raises:
        ConfigError: an unknown label, or no brain that lesions can be put into.
    """
    check_choice("label", label, SyntheticLabel)
    settings = settings or GeneratorSettings()
    streams = np.random.SeedSequence(list(seed)).spawn(5)
    place, anatomy, findings, machine, texture = map(np.random.default_rng, streams)
    head = look_at(brain)
    outline = scanner.draw_outline(machine, head, settings)
    foci = lesions.place_foci(place, head, outline.inside, settings)
    if label == "healthy":
        foci = []
    contrast = bool(findings.random() < settings.contrast_chance)
    seen = head.with_data(distractors.deform(anatomy, head, [focus.push for focus in foci], settings))
    seen = seen.with_data(distractors.without_agent(findings, seen, settings))
    seen = seen.with_data(distractors.enhance(findings, seen, contrast=contrast, settings=settings))
    paint = lesions.high_grade if label == "HGG" else lesions.low_grade
    where = np.zeros(head.data.shape, bool)
    white = seen.white()
    for outside in [lesions.outline(place, seen, white, focus, settings) for focus in foci]:
        seen = seen.with_data(paint(texture, seen, white, outside, contrast=contrast, settings=settings))
        where |= outside < 0
    data = scanner.with_rim(machine, seen.data, outline)
    data = scanner.taken(machine, head, data, settings)
    data = scanner.normalised(machine, head, data, outline.inside, settings)
    return Volume(data[None], brain.affine), where & outline.inside
