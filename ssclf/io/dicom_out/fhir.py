"""The report of a study as FHIR R4B: a DiagnosticReport with its Observation, in one Bundle.

Patient, order and images are named by their identifiers, as the DICOM source states them; no resource of theirs is
made. It imports fhir.resources, which the extra `fhir` brings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from ssclf.domain.stable_uids import stable_uid
from ssclf.domain.study_report import CLASSIFICATION, StudyReport, class_category, class_concept
from ssclf.errors import MissingDependencyError, VolumeError
from ssclf.io.dicom_out.source import SourceSeries, source_uids
from ssclf.io.files import write_whole
from ssclf.io.volumes.dicom_headers import get

#: The names of our files: a UUID, which tells nothing of a person.
FHIR_NAME = re.compile(r"DR-[0-9a-f-]{36}\.json")
_TERMS = "http://terminology.hl7.org/CodeSystem"


def check_fhir_extra() -> None:
    """Raises:
    MissingDependencyError: fhir.resources is not installed.
    """
    try:
        import fhir.resources  # noqa: F401
    except ImportError as exc:
        raise MissingDependencyError(
            "FHIR needs fhir.resources, which is not installed; pip install 'ssclf[fhir]'."
        ) from exc


def write_fhir(report: StudyReport, sources: Sequence[SourceSeries], folder: Path) -> str:
    """Write the report of one study; the same report about the same images gives the same file.

    Args:
        report, sources: see `write_objects`.
        folder: existing.

    Returns:
        the name of the file in `folder`: `DR-<uuid>.json`.

    Raises:
        MissingDependencyError: fhir.resources is not installed.
        VolumeError: no resource can be made of these headers.
        OutputError: the file cannot be written.
    """
    check_fhir_extra()
    from fhir.resources.R4B.bundle import Bundle

    try:
        text = Bundle.model_validate(_bundle(report, sources)).model_dump_json(indent=1)
    except ValueError as exc:  # what the library says quotes the value
        raise VolumeError("its headers make no FHIR resource.") from exc
    name = f"DR-{_uuid('report', report, sources)}.json"
    write_whole(folder / name, text + "\n")
    return name


def _bundle(report: StudyReport, sources: Sequence[SourceSeries]) -> dict[str, Any]:
    made = _uuid("report", report, sources), _uuid("observation", report, sources)
    first = sources[0].first
    study = _by_identifier("ImagingStudy", f"urn:oid:{first.StudyInstanceUID}", system="urn:dicom:uid")
    shared: dict[str, Any] = {"status": "preliminary", "code": {"text": CLASSIFICATION.meaning}}
    if patient := str(get(first, "PatientID", "")).strip():
        issuer = str(get(first, "IssuerOfPatientID", "")).strip()
        of = {"assigner": {"display": issuer}} if issuer else {}
        shared["subject"] = _by_identifier("Patient", patient, **of)
    if date := re.fullmatch(r"(\d{4})(\d\d)(\d\d)", str(get(first, "StudyDate", ""))):
        shared["effectiveDateTime"] = "-".join(date.groups())
    if order := str(get(first, "AccessionNumber", "")).strip():
        kind = {"coding": [{"system": f"{_TERMS}/v2-0203", "code": "ACSN"}]}
        shared["basedOn"] = [_by_identifier("ServiceRequest", order, type=kind)]
    observation = {
        **shared,
        **_answer(report),
        "resourceType": "Observation",
        "id": made[1],
        "category": [{"coding": [{"system": f"{_TERMS}/observation-category", "code": "imaging"}]}],
        "derivedFrom": [study],
        "device": {"type": "Device", "display": f"ssclf {report.version}"},
        "note": [{"text": text} for text in _notes(report, sources)],
    }
    written = {
        **shared,
        "resourceType": "DiagnosticReport",
        "id": made[0],
        "identifier": [{"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{made[0]}"}],
        "category": [{"coding": [{"system": f"{_TERMS}/v2-0074", "code": "IMG"}]}],
        "imagingStudy": [study],
        "result": [{"reference": f"urn:uuid:{made[1]}"}],
        "conclusion": " ".join(report.sentences),
    }
    entries = [{"fullUrl": f"urn:uuid:{one['id']}", "resource": one} for one in (written, observation)]
    return {"resourceType": "Bundle", "type": "collection", "entry": entries}


def _by_identifier(kind: str, value: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "identifier": {**more, "value": value}}


def _answer(report: StudyReport) -> dict[str, Any]:
    """Class and probabilities, or why there are none."""
    if report.withheld:
        return {"dataAbsentReason": {"text": report.withheld}}
    value: dict[str, Any] = {"text": class_concept(report.prediction).meaning}
    if category := class_category(report.prediction):
        value["coding"] = [
            {"system": "http://snomed.info/sct", "code": category.value, "display": category.meaning}
        ]
    components = [
        {
            "code": {"text": f"Probability of {class_concept(name).meaning}"},
            "valueQuantity": {"value": p, "system": "http://unitsofmeasure.org", "code": "1"},
        }
        for name, p in zip(report.class_names, report.probabilities, strict=True)
    ]
    return {"valueCodeableConcept": value, "component": components}


def _notes(report: StudyReport, sources: Sequence[SourceSeries]) -> list[str]:
    return [
        *report.sentences,
        *(f"Model {name}, SHA-256 {sha256}." for name, sha256 in report.models),
        *(f"Series urn:oid:{source.uid}." for source in sources if report.rule),
    ]


def _uuid(kind: str, report: StudyReport, sources: Sequence[SourceSeries]) -> str:
    uid = stable_uid(f"FHIR {kind}", *source_uids(sources), *report.identity)
    return str(UUID(int=int(uid.removeprefix("2.25."))))
