"""How far each operation of RandAugment is from torchvision's: `python -m benchmarks.compare_rand_augment`.

The same images and amounts, at magnitudes 9, 17 and 30 and both signs; differences are of grey values, 0 to 255. The
test tests/data/streaming/test_rand_augment.py holds the operations to these.
"""

import numpy as np

from benchmarks.records import Record, Row, save
from fastmpl.data.streaming.rand_augment import Operation
from tests.augmentation import MAGNITUDES, NAMES, cases, images, ours, theirs

LARGEST = {
    "Shear": "0.3 of the side", "Translate": "100/224 of the side", "Rotate": "30 degrees", "Brightness": "factor 1 ± 0.9",
    "Color": "factor 1 ± 0.9", "Contrast": "factor 1 ± 0.9", "Sharpness": "factor 1 ± 0.9", "Posterize": "4 bits left",
    "Solarize": "from 0 on",
}  # fmt: skip
WHY = {
    "Rotate": "pixels read at the border of two",
    "Sharpness": "within the outermost pixels, which torchvision leaves as they are: none above 1",
    "Equalize": "OpenCV's table, where torchvision has PIL's",
}
ROUNDED = "rounded, where torchvision cuts off"


def _of(name: str) -> str:
    return next((text for start, text in LARGEST.items() if name.startswith(start)), "")


def main() -> None:
    of, every = images(), cases()
    made = dict(zip(every, ours(every, of), strict=True))
    rows: list[Row] = []
    for operation in Operation:
        mine = [case for case in every if case.operation is operation]
        row: Row = {"operation": NAMES[operation], "at magnitude 30": _of(NAMES[operation])}
        worst = 0
        for tensors, against in ((False, "PIL"), (True, "tensors")):
            found = [np.abs(made[case].astype(int) - theirs(case, of, tensors=tensors)) for case in mine]
            worst = max(worst, *(int(difference.max()) for difference in found))
            row[f"largest, {against}"] = max(int(difference.max()) for difference in found)
            row[f"mean, {against}"] = f"{max(float(difference.mean()) for difference in found):.3f}"
        row["why"] = WHY.get(NAMES[operation], ROUNDED if worst else "equal")
        rows.append(row)
        print("  ".join(map(str, row.values())))
    config = {"images": len(of), "size": of.shape[1], "magnitudes": " ".join(map(str, MAGNITUDES))}
    print(save(Record("rand_augment", "table", rows, dict(config))))


if __name__ == "__main__":
    main()
