"""Scoring without Ray and without torch: one process, one chunk after the other, a model that is a mean of pixels.

As a program: it does what is asked on standard input, each in a process that is forked from this one, which has
imported all that is needed. A line asks for {"config", "at", "action", "forbid"}; the answer is the exit code.
"""

import contextlib
import errno
import json
import os
import signal
import sys
import types
from pathlib import Path

import numpy as np

EXIT = {"ok": 0, "JobError": 1, "UserError": 2, "other": 3, "not reached": 4}


class Tasks:
    """In the place of Ray's."""

    def start(self, function, *arguments):
        function(*arguments)

    def wait(self):
        pass


class Predictor:
    """In the place of the network's."""

    def __init__(self, model, **_):
        from deepfake_ray.models import bundle

        self.spec = bundle.load_spec(model)

    def start(self, pixels):
        return pixels.astype(np.float32).mean((1, 2, 3)) / 64 - 2


class Nothing:
    def __init__(self, *_):
        pass

    def update(self, *_):
        pass


def without_ray(patch):
    """`patch(object, name, value)` all that needs Ray or torch."""
    from deepfake_ray.cluster.placement import Node
    from deepfake_ray.drivers import score
    from deepfake_ray.processes.isolation import Items
    from deepfake_ray.scoring import chunk_files
    from deepfake_ray.scoring.worker import ChunkScorer

    def reports_of(dataset):
        chunks, spec = dataset.of
        scorer = ChunkScorer(spec)
        for chunk in chunks:
            yield scorer(chunk, Items(lambda _: contextlib.nullcontext()))

    patch(score, "plan_with_autoscaler", lambda plan: plan([Node(2, 0, has_data_label=False)]))
    patch(score, "check_places", lambda *_, **__: None)
    patch(score, "RunMetrics", Nothing)
    patch(score.precision, "resolve", lambda asked, **_: "fp32" if asked == "auto" else asked)
    patch(score, "reports_of", reports_of)
    patch(
        score,
        "scoring_dataset",
        lambda chunks, spec, _: types.SimpleNamespace(of=(chunks, spec), stats=lambda: "statistics"),
    )
    patch(chunk_files, "RayTasks", Tasks)


def without_torch(patch):
    patch(sys.modules, "deepfake_ray.models.inference", types.SimpleNamespace(Predictor=Predictor))


class Interruption:
    """Does something at the n-th time that a file is about to change (odd ones), or has just changed (even ones)."""

    def __init__(self, at, action):
        self.at, self.action = at, action
        self.count = 0

    def event(self):
        self.count += 1
        if self.count == self.at:
            self.action()

    def around(self, function):
        def wrapped(*arguments, **options):
            self.event()
            try:
                return function(*arguments, **options)
            finally:
                self.event()

        return wrapped

    def install(self):
        from deepfake_ray.storage import files

        for owner, name in ((os, "replace"), (os, "link"), (files, "delete")):
            setattr(owner, name, self.around(getattr(owner, name)))
        unlink, unlink_and_tell = os.unlink, self.around(os.unlink)
        # Of temporary files, few would notice.
        os.unlink = lambda path, **more: (unlink if str(path).endswith(".tmp") else unlink_and_tell)(path, **more)
        whole = files.delete_directory

        def delete_directory(uri):
            self.event()
            for path in sorted(Path(uri).glob("*"))[::2]:  # some are gone, some are not
                if path.is_file():
                    path.unlink()
            whole(uri)
            self.event()

        files.delete_directory = delete_directory


def work(config, at, action, forbid):
    """Run `score`; returns the exit code of the command line."""
    from deepfake_ray.config import ScoreConfig
    from deepfake_ray.drivers import score
    from deepfake_ray.errors import ErrorCode, ImageError, JobError, UserError
    from deepfake_ray.images import loading
    from deepfake_ray.scoring import chunk_files
    from deepfake_ray.storage import output_lock

    without_ray(setattr)
    without_torch(lambda modules, name, value: modules.__setitem__(name, value))
    chunk_files.ROWS_PER_PART, chunk_files.ROWS_PER_GROUP = 5, 4
    output_lock.DYING_S = 0.0
    fetch = loading.fetch

    def sometimes(uri, *more):
        if Path(uri).name in forbid:
            raise ImageError(ErrorCode.FORBIDDEN, "not now")
        return fetch(uri, *more)

    loading.fetch = sometimes
    config = ScoreConfig(**{**config, "images": (config["images"],)})

    def fails(number):
        def action():
            raise OSError(number, os.strerror(number))

        return action

    def second(**options):
        from dataclasses import replace

        with contextlib.suppress(UserError):
            score.score(replace(config, resume=True, **options))

    def taken_over():
        Path(config.output, "_LOCK").unlink(missing_ok=True)
        second()

    interruption = Interruption(
        at,
        {
            "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "fail": fails(errno.ENOSPC if at % 4 == 1 else errno.EACCES),
            "second run": second,
            "taken over": taken_over,
            None: lambda: None,
        }[action],
    )
    interruption.install()
    try:
        score.score(config)
    except JobError as error:
        print(f"failed: {error}", file=sys.stderr)
        return EXIT["JobError"]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT["UserError"]
    return EXIT["not reached"] if action and interruption.count < at else EXIT["ok"]


def main():
    from deepfake_ray.drivers import score  # noqa: F401
    from deepfake_ray.scoring import worker  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if not pid:
            code = EXIT["other"]
            try:
                with open(asked.pop("log"), "w") as log:
                    os.dup2(log.fileno(), 1)  # which are the answers' otherwise
                    os.dup2(log.fileno(), 2)
                code = work(**asked)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
