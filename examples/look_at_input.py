"""What a network sees of a scan: stripped, scaled and resampled as in the paper, as NIfTI for any viewer."""

import sys

import nibabel as nib
import numpy as np

import ssclf


def main(scan: str, out: str) -> None:
    prepared = ssclf.preprocess(scan)
    # ssclf's arrays are (C, D, H, W); NIfTI's first axis is the last of these
    voxels = np.transpose(prepared.data[0])
    affine = prepared.affine[:, [2, 1, 0, 3]]
    nib.save(nib.Nifti1Image(voxels, affine), out)
    print(f"{out}: {voxels.shape}, flags: {', '.join(prepared.flags) or 'none'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
