"""Files of the reference model of ssclf: `model/`, a bundle, and `weights/` where that holds none to train on."""
