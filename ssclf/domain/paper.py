"""What the paper published, to stand beside our own numbers.

Source: Chatterjee, Nizamani, Nürnberger, Speck: Classification of Brain Tumours in MR Images using Deep
Spatiospatial Models. Its accuracy (96.98 %) is left out on purpose, see `ACCURACY_NOTE`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CLASSES = ("LGG", "HGG", "healthy")
#: Where F1 of each class stands.
TABLES = {"LGG": "Table 2", "HGG": "Table 3", "healthy": "Table 4"}
#: Beside mc3/pretrained, whose data the paper's text quotes.
ACCURACY_NOTE = (
    "The paper gives a mean test accuracy of 96.98 % and a specificity of 0.9684 for its best network, mixed "
    "convolution with pretraining. The specificity is the mean of the three classes' values in Fig. 7. The accuracy "
    "cannot be the share of volumes classified right: the recalls of Fig. 7 on 73, 259 and 259 volumes give 93.85 %. "
    "It is therefore no figure to compare with; compare F1. Precision and recall in Fig. 7 fit class shares of about "
    "30, 37 and 34 %, not the 12, 44 and 44 % of the data."
)


@dataclass(frozen=True)
class PaperClass:
    """Means over three random 70/30 divisions.

    Attributes:
        f1, f1_sd: Tables 2 to 4.
        precision, recall, specificity: Fig. 7, read from the authors' figure.
    """

    f1: float
    f1_sd: float
    precision: float
    recall: float
    specificity: float


@dataclass(frozen=True)
class PaperNetwork:
    """Attributes:
    parameters: Table 1.
    per_class: by class name.
    macro_f1, weighted_f1: Table 5, without deviations.
    """

    title: str
    parameters: int
    per_class: Mapping[str, PaperClass]
    macro_f1: float
    weighted_f1: float


def _network(
    title: str,
    parameters: int,
    macro_f1: float,
    weighted_f1: float,
    *classes: tuple[float, float, float, float, float],
) -> PaperNetwork:
    per_class = {name: PaperClass(*values) for name, values in zip(CLASSES, classes, strict=True)}
    return PaperNetwork(title, parameters, per_class, macro_f1, weighted_f1)


#: By network and start, as `ssclf cv` names them. The text gives the deviation of the pretrained R(2+1)D on LGG as
#: 0.033, Table 2 as 0.041; the table's is kept.
NETWORKS: Mapping[str, PaperNetwork] = {
    "r3d/scratch": _network(
        "ResNet 3D", 33_150_522, 0.9095, 0.9269,
        (0.8542, 0.049, 0.7981, 0.9206, 0.9072),
        (0.8773, 0.034, 0.9334, 0.8289, 0.9629),
        (0.9970, 0.005, 0.9996, 0.9944, 0.9998),
    ),
    "r3d/pretrained": _network(
        "ResNet 3D, pretrained", 33_150_522, 0.8925, 0.9171,
        (0.8143, 0.048, 0.7817, 0.8552, 0.9117),
        (0.8634, 0.042, 0.8969, 0.8353, 0.9378),
        (0.9998, 0.0002, 1.0, 0.9997, 1.0),
    ),
    "r2plus1d/scratch": _network(
        "ResNet(2+1)D", 31_297_254, 0.9035, 0.9220,
        (0.8448, 0.019, 0.7861, 0.9143, 0.9023),
        (0.8730, 0.022, 0.9309, 0.8229, 0.9622),
        (0.9927, 0.009, 0.9949, 0.9904, 0.9973),
    ),
    "r2plus1d/pretrained": _network(
        "ResNet(2+1)D, pretrained", 31_297_254, 0.9237, 0.9393,
        (0.8739, 0.041, 0.8415, 0.9108, 0.9312),
        (0.8979, 0.032, 0.9285, 0.8705, 0.9597),
        (0.9992, 0.001, 0.9996, 0.9988, 0.9998),
    ),
    "mc3/scratch": _network(
        "Mixed convolution", 11_472_963, 0.8607, 0.8881,
        (0.7734, 0.031, 0.7473, 0.8860, 0.8552),
        (0.8231, 0.027, 0.9113, 0.7505, 0.9639),
        (0.9855, 0.004, 0.9944, 0.9769, 0.9972),
    ),
    "mc3/pretrained": _network(
        "Mixed convolution, pretrained", 11_472_963, 0.9345, 0.9470,
        (0.8949, 0.033, 0.8631, 0.9319, 0.9369),
        (0.9123, 0.029, 0.9445, 0.8837, 0.9696),
        (0.9963, 0.002, 0.9975, 0.9951, 0.9987),
    ),
}  # fmt: skip
