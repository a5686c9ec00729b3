"""A study's report as a DICOM Structured Report (PS3.16, TID 1500 "Measurement Report")."""

from __future__ import annotations

from collections.abc import Sequence

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    EnhancedSR,
    FindingSite,
    ImageContentItem,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    TextContentItem,
    TrackingIdentifier,
    UIDRefContentItem,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from ssclf.domain import study_report as said
from ssclf.domain.stable_uids import stable_uid
from ssclf.domain.study_report import Concept, StudyReport
from ssclf.io.dicom_out.source import SourceSeries

#: What our objects say of the device that made them.
MANUFACTURER, MODEL = "ssclf", "Spatiospatial classifier"
SERIES_DESCRIPTION = "ssclf RESEARCH USE ONLY"
#: Where our series stand in a study; scanners number theirs below.
SR_SERIES, MAP_SERIES, PICTURE_SERIES = 9901, 9902, 9903
_CONTAINS = RelationshipTypeValues.CONTAINS
_COMMENT = Concept("121106", "DCM", "Comment")
_SERIES_UID = Concept("112002", "DCM", "Series Instance UID")
_SERIES_NUMBER = Concept("113607", "DCM", "Series Number")
_LONGEST_TEXT = 1024  # of UT, for readers that show a line


def coding_schemes() -> list[CodingSchemeIdentificationItem]:
    """Whose private codes ours are."""
    return [
        CodingSchemeIdentificationItem(
            designator=said.SCHEME,
            name="Codes of ssclf",
            uid=stable_uid("coding scheme"),
            responsible_organization="ssclf",
        )
    ]


def structured_report(
    report: StudyReport,
    sources: Sequence[SourceSeries],
    uids: dict[str, str],
    date_time: tuple[str, str],
    shown: Dataset | None,
) -> EnhancedSR:
    """The report's data set.

    Args:
        sources: at least one, of one study; the first stands for patient and study.
        uids: "series" and "instance".
        date_time: of its content.
        shown: map or picture of the evidence, if any.
    """
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=_device(report)),
        procedure_reported=codes.LN.BrainMRI,
        imaging_measurements=[_group(report, sources, uids, shown)],
    )
    root = content[0].ContentSequence
    for text in report.sentences:  # before the measurements: readers show what comes first
        root.insert(len(root) - 1, _text(CodedConcept(*_COMMENT), text))
    if report.rule:
        # some readers show values without their names
        root.append(_text(CodedConcept(*said.RULE), f"Series chosen by the rule: {report.rule}"))
    if report.withheld:
        root.append(_text(CodedConcept(*said.REASON), report.withheld))
    if report.others:
        root.append(_others(report))
    evidence = [image for source in sources for image in source.images]
    return EnhancedSR(
        evidence=[*evidence, *([shown] if shown is not None else [])],
        content=content,
        series_instance_uid=uids["series"],
        series_number=SR_SERIES,
        sop_instance_uid=uids["instance"],
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL,
        software_versions=report.version,
        device_serial_number=serial_number(report),
        series_description=SERIES_DESCRIPTION,
        content_qualification="RESEARCH",
        coding_schemes=coding_schemes(),
        content_date=date_time[0],
        content_time=date_time[1],
        is_complete=True,
        is_final=False,
        is_verified=False,
    )


def serial_number(report: StudyReport) -> str:
    """What stands for a device's: the models."""
    return "+".join(sha256[:16] for _, sha256 in report.models)[:64]


def _device(report: StudyReport) -> ObserverContext:
    identity = [text for model in report.models for text in model]
    return ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=stable_uid("device", report.version, *identity),
            name="ssclf",
            manufacturer_name=MANUFACTURER,
            model_name=MODEL,
            serial_number=serial_number(report),
        ),
    )


def _algorithm(report: StudyReport) -> AlgorithmIdentification:
    return AlgorithmIdentification(
        name=f"ssclf {'+'.join(name for name, _ in report.models)}",
        version=report.version,
        parameters=[
            *(f"model {name}, SHA-256 {sha256}" for name, sha256 in report.models),
            *([report.settings] if report.settings else []),
        ],
        manufacturer=MANUFACTURER,
    )


def _group(
    report: StudyReport, sources: Sequence[SourceSeries], uids: dict[str, str], shown: Dataset | None
) -> MeasurementsAndQualitativeEvaluations:
    """The one group of a report: the class, the probabilities, the flags, and what they were found in."""
    answered = not report.withheld
    evaluations = [
        QualitativeEvaluation(CodedConcept(*said.FLAG), CodedConcept(*said.flag_concept(flag)))
        for flag in report.flags
    ]
    category = said.class_category(report.prediction)
    if answered:
        found = CodedConcept(*said.class_concept(report.prediction))
        evaluations.insert(0, QualitativeEvaluation(CodedConcept(*said.PREDICTED_CLASS), found))
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=stable_uid("finding", uids["instance"]), identifier="ssclf classification"
        ),
        finding_type=CodedConcept(*(said.CLASSIFICATION if answered else said.NO_CLASSIFICATION)),
        finding_category=CodedConcept(*category) if category else None,
        finding_sites=[FindingSite(codes.SCT.Brain)],
        algorithm_id=_algorithm(report),
        measurements=_probabilities(report),
        qualitative_evaluations=evaluations,
    )
    content = group[0].ContentSequence
    if report.rule:
        for source in sources:
            content.append(_uid(source.uid))
    if shown is not None:
        content.append(
            ImageContentItem(
                name=codes.DCM.ClassActivation,
                referenced_sop_class_uid=shown.SOPClassUID,
                referenced_sop_instance_uid=shown.SOPInstanceUID,
                relationship_type=_CONTAINS,
            )
        )
    return group


def _probabilities(report: StudyReport) -> list[Measurement]:
    """A probability for every class, which it names as its finding."""
    measurements = []
    for name, probability in zip(report.class_names, report.probabilities, strict=False):
        one = Measurement(name=codes.DCM.Probability, value=probability, unit=codes.UCUM.NoUnits)
        of_class = CodeContentItem(
            name=codes.DCM.Finding,
            value=CodedConcept(*said.class_concept(name)),
            relationship_type=RelationshipTypeValues.HAS_CONCEPT_MOD,
        )
        one[0].ContentSequence = ContentSequence([of_class])
        measurements.append(one)
    return measurements


def _others(report: StudyReport) -> ContainerContentItem:
    """The series of the study that are not answered, each with its reason."""
    container = _container(said.OTHER_SERIES)
    for other in report.others:
        one = _container(said.SERIES)
        if other.uid:
            one.ContentSequence.append(_uid(other.uid))
        if other.number > 0:
            one.ContentSequence.append(_text(CodedConcept(*_SERIES_NUMBER), str(other.number)))
        one.ContentSequence.append(_text(CodedConcept(*said.OTHER_REASON), other.reason))
        container.ContentSequence.append(one)
    return container


def _container(concept: Concept) -> ContainerContentItem:
    item = ContainerContentItem(name=CodedConcept(*concept), relationship_type=_CONTAINS)
    item.ContentSequence = ContentSequence()
    return item


def _uid(uid: str) -> UIDRefContentItem:
    return UIDRefContentItem(name=CodedConcept(*_SERIES_UID), value=uid, relationship_type=_CONTAINS)


def _text(name: CodedConcept, value: str) -> TextContentItem:
    return TextContentItem(name=name, value=value[:_LONGEST_TEXT], relationship_type=_CONTAINS)
