"""Scoring with Daft, as its guide to batch inference has it: download, decode and resize expressions, a class UDF."""

import daft
import numpy as np
from daft import col
from scoring import Model, arguments, note


def main():
    options = arguments(__doc__)
    from deepfake_ray.models import bundle

    size = bundle.load_spec(options.model).preparation.image_size

    @daft.cls(max_concurrency=options.workers, use_process=True)
    class Predictor:
        def __init__(self):
            self.model = Model(options.model, options.threads)

        @daft.method.batch(return_dtype=daft.DataType.float32(), batch_size=options.batch_size)
        def __call__(self, images):
            scores = self.model.p_fake_of_pixels(np.stack(images.to_pylist()))
            note(options.output, len(scores))
            return scores

    predictor = Predictor()
    frame = daft.from_pydict({"uri": options.paths})
    if options.in_batches:
        frame = frame.into_batches(options.batch_size)
    image = daft.functions.decode_image(daft.functions.download(col("uri")), mode="RGB")
    frame = frame.with_column("image", daft.functions.resize(image, size, size))
    frame = frame.select(col("uri"), predictor(col("image")).alias("p_fake"))
    frame.write_parquet(f"{options.output}/scores")


if __name__ == "__main__":
    main()
