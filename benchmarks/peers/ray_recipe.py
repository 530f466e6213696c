"""Scoring as Ray Data's guide to batch inference has it: read_images, map_batches of a predictor, write_parquet."""

import ray
from scoring import Model, arguments, note


class Predictor:
    def __init__(self, model, threads, output):
        self.model, self.output = Model(model, threads), output

    def __call__(self, batch):
        scores = self.model.p_fake_of_pixels(batch["image"])
        note(self.output, len(scores))
        return {"path": batch["path"], "p_fake": scores}


def main():
    options = arguments(__doc__)
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    from deepfake_ray.models import bundle

    size = bundle.load_spec(options.model).preparation.image_size
    images = ray.data.read_images(options.paths, size=(size, size), mode="RGB", include_paths=True)
    # Actors of a whole CPU each would leave none for reading, and stand still.
    scored = images.map_batches(
        Predictor,
        fn_constructor_args=(options.model, options.threads, options.output),
        batch_size=options.batch_size,
        compute=ray.data.ActorPoolStrategy(size=options.workers),
        num_cpus=0.5,
    )
    scored.write_parquet(f"{options.output}/scores")


if __name__ == "__main__":
    main()
