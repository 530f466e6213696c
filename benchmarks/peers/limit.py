"""The limit: a process for each core, bytes already in memory; decode, resize, forward, nothing else."""

import multiprocessing

from scoring import Model, arguments, note


def loop(options, paths, barrier):
    import numpy as np

    from deepfake_ray.images.decode import Limits, decode
    from deepfake_ray.images.preprocessing import prepare
    from deepfake_ray.models.bundle import load_spec
    from deepfake_ray.processes.allocator import keep_freed_memory

    keep_freed_memory()
    model = Model(options.model, 1)
    preparation = load_spec(options.model).preparation
    limits = Limits(max_bytes=10**9, max_pixels=10**9)
    files = []
    for path in paths:
        with open(path, "rb") as file:
            files.append(file.read())
    barrier.wait()
    for start in range(0, len(files), options.batch_size):
        decoded = [decode(data, limits, preparation.enough) for data in files[start : start + options.batch_size]]
        model.p_fake_of_pixels(np.stack([prepare(image.pixels, preparation) for image in decoded]))
        note(options.output, len(decoded))


def main():
    options = arguments(__doc__)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(options.workers)
    loops = [
        context.Process(target=loop, args=(options, options.paths[i :: options.workers], barrier))
        for i in range(options.workers)
    ]
    for process in loops:
        process.start()
    for process in loops:
        process.join()


if __name__ == "__main__":
    main()
