"""Scoring with a PyTorch DataLoader and torchvision's transforms, as the tutorials have it."""

import pandas as pd
from PIL import Image
from scoring import Model, arguments, note, transform
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    def __init__(self, paths, image_size):
        self.paths, self.transform = paths, transform(image_size)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def main():
    options = arguments(__doc__)
    model = Model(options.model, options.threads)
    images = Images(options.paths, model.image_size)
    scores = []
    for x in DataLoader(images, options.batch_size, num_workers=options.workers, pin_memory=False):
        scores.extend(model.p_fake(x))
        note(options.output, len(x))
    pd.DataFrame({"uri": options.paths, "p_fake": scores}).to_parquet(f"{options.output}/scores.parquet")


if __name__ == "__main__":
    main()
