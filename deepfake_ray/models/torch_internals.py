"""torch's private parts: the one module that names them. All are of torch 2.14, which pyproject.toml pins.

No job depends on them: where one is gone, its function says so in one warning and does nothing.
"""

from deepfake_ray.console import Dispensable


def prepare_compiling() -> None:
    """Set how this process compiles: weights as constants, on one thread.

    Constants are laid out as the kernels want them, and scorers each compile for themselves, beside the others. Without
    it: a compiled model scores more slowly, and all scorers of a machine compile on all of its CPUs at a time.
    """
    with Dispensable("torch's compiler cannot be set up", "scores come more slowly"):
        from torch._inductor import config

        for name, value in {"freezing": True, "compile_threads": 1}.items():
            getattr(config, name)
            setattr(config, name, value)
