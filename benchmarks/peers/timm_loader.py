"""Scoring with timm's way of reading: create_dataset and create_loader. It reads folders, so the list becomes one."""

import os

import pandas as pd
from scoring import MEAN, STD, Model, arguments, note
from timm.data import create_dataset, create_loader


def main():
    options = arguments(__doc__)
    model = Model(options.model, options.threads)
    folder = f"{options.output}/images/all"
    os.makedirs(folder)
    for number, path in enumerate(options.paths):
        os.symlink(path, f"{folder}/{number:06d}{os.path.splitext(path)[1]}")
    size = model.image_size
    loader = create_loader(
        create_dataset("", root=f"{options.output}/images", is_training=False),
        input_size=(3, size, size), batch_size=options.batch_size, is_training=False, use_prefetcher=False,
        num_workers=options.workers, mean=MEAN, std=STD, interpolation="bilinear", crop_pct=1.0, crop_mode="squash",
        persistent_workers=False,
    )  # fmt: skip
    scores = []
    for x, _ in loader:
        scores.extend(model.p_fake(x))
        note(options.output, len(x))
    pd.DataFrame({"uri": options.paths, "p_fake": scores}).to_parquet(f"{options.output}/scores.parquet")


if __name__ == "__main__":
    main()
