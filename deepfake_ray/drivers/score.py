"""`score(config)`: images in, predictions out. The driver, and resuming.

The manifest is cut into chunks. The scorer of chunk 7 writes `chunks/chunk-0000007.parquet`, whole or not at all; when
all chunks of a part are there, they become one file, `predictions/part-00000.parquet`, and are removed. So a chunk
that is scored twice (a lost worker, a killed driver) overwrites itself, and what is left to do is what has no file.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from math import ceil
from typing import Any

from deepfake_ray.cluster import precision
from deepfake_ray.cluster.autoscaling import plan_with_autoscaler
from deepfake_ray.cluster.placement import Node, ScoringPlacement, plan_scoring
from deepfake_ray.cluster.prometheus import RunMetrics
from deepfake_ray.cluster.session import Patience, check_places
from deepfake_ray.config import ScoreConfig, ScoringOptions
from deepfake_ray.console import Progress, duration, say, show
from deepfake_ray.data import manifest, predictions
from deepfake_ray.data.listing import Pick
from deepfake_ray.drivers.resuming import RUN, require_same_scores, scores_are_done
from deepfake_ray.errors import JobError
from deepfake_ray.images.decode import Limits
from deepfake_ray.images.preprocessing import Preparation
from deepfake_ray.models import bundle
from deepfake_ray.models.scores import Threshold, format_p_fake, require_same_precision
from deepfake_ray.models.spec import Spec
from deepfake_ray.scoring import reuse
from deepfake_ray.scoring.actors import reports_of, scoring_dataset
from deepfake_ray.scoring.chunk_files import CHUNKS, Layout
from deepfake_ray.scoring.error_limit import ErrorWatch, describe_errors
from deepfake_ray.scoring.spec import Report, ScorerSpec, default_batch_size, require_suited
from deepfake_ray.scoring.tally import Tally
from deepfake_ray.storage import files, outputs
from deepfake_ray.storage.output_lock import OutputLock, hold_output

MANIFEST = "manifest"
STAGE = "score"
CHUNKS_PER_ACTOR = 16
"""Wanted: few enough to cost nothing, many enough to keep all actors busy to the end."""
PIXELS_PER_CHUNK = 1024 * 224 * 224
"""At most, as prepared: what a killed run has to do again."""
SECONDS_BETWEEN_LINES = 5.0


def score(config: ScoreConfig) -> dict[str, Any]:
    """Score the images as configured and write OUTPUT; returns `run.json`.

    Raises:
        UserError: see the messages.
        JobError: no image could be scored, or too many could not.
    """
    output = files.absolute(config.output)
    if scores_are_done(config, output):
        finished: dict[str, Any] = files.read_json(files.join(output, RUN))
        return finished
    with hold_output(output) as lock:
        return _score(config, output, lock)


def _score(config: ScoreConfig, output: str, lock: OutputLock) -> dict[str, Any]:
    pick = Pick(config.include, config.exclude)
    summary = score_manifest(
        config,
        config.images,
        lambda: manifest.pages_of(config.images, pick=pick, limit=config.limit, shared_storage=config.shared_storage),
        lock,
    )
    lock.mark_finished()
    show(f"  predictions  {files.join(output, 'predictions')}\n  summary      {files.join(output, RUN)}")
    return summary


def score_manifest(
    config: ScoringOptions,
    inputs: Sequence[str],
    pages: Callable[[], Iterable[manifest.Page]],
    lock: OutputLock,
    degradations: tuple[str, ...] = (),
    stage: str = STAGE,
) -> dict[str, Any]:
    """Score the images of `pages()` into OUTPUT/predictions, resuming if asked to; write and return `run.json`.

    Args:
        config: of the job.
        inputs: places that the workers must reach.
        pages: called once, for a new output only, so that a resumed run scores the images it began with.
        lock: of OUTPUT, or of what it lies in.
        degradations: names of `DEGRADATIONS`; the predictions are for the images after each of them.
        stage: what progress is called; the result is said of `STAGE` alone, and not of degradations.
    """
    output = files.absolute(config.output)
    run_uri = files.join(output, RUN)
    model = bundle.load_spec(config.model)
    require_suited(
        model,
        config.model,
        crops=config.crops,
        use_gpu=config.use_gpu,
        precision=config.precision,
        compiled=config.compile,
    )
    resuming = config.resume and files.exists(run_uri)
    if resuming:
        run = files.read_json(run_uri)
        require_same_scores(config, run)
    elif not config.resume:
        outputs.require_new_output(output, resumable=True)

    def plan(nodes: Sequence[Node]) -> ScoringPlacement:
        return plan_scoring(nodes, config.num_workers, "no" if model.scales else config.use_gpu)

    placement = plan_with_autoscaler(plan)
    check_places([config.model, *(() if resuming else inputs)], output, shared_storage=config.shared_storage)
    computes_in = precision.resolve(config.precision, use_gpu=placement.use_gpu, quantized=bool(model.scales))
    if resuming:
        require_same_precision("--resume goes on with the same run", run.get("precision"), computes_in)
    if config.resume:
        outputs.mark_unfinished(output)  # nothing refuses it any more
    if not resuming:
        run = _begin(config, model, computes_in, placement, pages, lock, max(1, len(degradations)))
    manifest_uri = files.join(output, MANIFEST)
    if run["num_other_files"]:
        say(f"{run['num_other_files']:,} other files are no images; see {manifest_uri}/{manifest.OTHER_FILES}")
    layout = Layout(output, manifest.chunks(manifest_uri, run["rows_per_chunk"]))
    spec = ScorerSpec(
        model=files.absolute(config.model),
        chunks=layout.chunk_folder,
        threshold=model.threshold(config.threshold),
        batch_size=run["batch_size"],
        num_crops=config.crops,
        precision=computes_in,
        compile=config.compile,
        limits=Limits(max_bytes=config.max_image_bytes, max_pixels=config.max_image_pixels),
        image_timeout_s=config.image_timeout_s,
        max_error_share=config.max_error_share,
        device="cuda" if placement.use_gpu else "cpu",
        run_id=run["run_id"],
        known=None if config.skip_known is None else _known_file(config),
        degradations=degradations,
    )
    left = layout.chunks_left()
    if resuming:
        num_left = sum(chunk.num_rows for chunk in left)
        say(f"resuming: {run['num_images'] - num_left:,} of {run['num_images']:,} images are scored already")

    def write(run: dict[str, Any]) -> None:
        lock.require()
        files.write_json(run_uri, run)

    if left and config.skip_known is not None and not files.exists(_known_file(config)):
        _build_known(config, model, computes_in)
    tally = Tally(run, write, has_profile=config.profile)
    if left:
        say(f"starting {min(len(left), placement.num_actors)} scorer(s) ...")
        try:
            _Run(spec, layout, plan, tally, stage).score(left, placement)
        except BaseException:
            with suppress(OSError, JobError):  # what it was is said already
                tally.note()
            raise
    lock.require()
    layout.finish()
    counts = predictions.count(layout.predictions, run["num_images"] * max(1, len(degradations)))
    run |= {**counts, "status": "finished", "finished_at": datetime.now(UTC).isoformat(timespec="seconds")}
    run["warnings"] = [] if degradations else predictions.warnings_of(counts)
    tally.note()
    if not counts["num_ok"]:
        raise JobError(
            f"no image could be scored: {describe_errors(counts['errors_by_code'])}; see error_message in "
            f"{layout.predictions}"
        )
    if stage == STAGE and not degradations:
        _say_result(run, spec.threshold, left_any=bool(left))
    return run


def _say_result(run: dict[str, Any], threshold: Threshold, *, left_any: bool) -> None:
    rate = f" at {run['images_per_s']:,.0f} images/s" if left_any and run["images_per_s"] else ""
    show(
        f"{run['num_images']:,} images in {duration(run['wall_s'])}{rate}: {run['num_ok']:,} scored, "
        f"{run['num_predicted']['fake']:,} of them called fake at p_fake >= {format_p_fake(threshold.p_fake)}"
        + (f"; {run['num_known']:,} scores were known" if run["num_known"] else "")
        + (f"; {run['num_errors']:,} errors ({describe_errors(run['errors_by_code'])})" if run["num_errors"] else "")
    )
    for warning in run["warnings"]:
        say(f"warning: {warning}")


def _begin(
    config: ScoringOptions,
    model: Spec,
    computes_in: str,
    placement: ScoringPlacement,
    pages: Callable[[], Iterable[manifest.Page]],
    lock: OutputLock,
    variants: int,
) -> dict[str, Any]:
    """List the images and write all that a resumed run needs; returns `run.json` as it begins."""
    output = files.absolute(config.output)
    say("listing the images ...")
    listed = _list(pages, files.join(output, MANIFEST))
    if listed.num_repeated_uris:
        say(f"{listed.num_repeated_uris:,} URIs were named again: each image is scored once")
    batch_size, rows_per_chunk = _sizes(listed.num_images, config, placement, model.preparation, variants)
    run = {
        "run_id": uuid.uuid4().hex[:16],
        "status": "running",
        "model_id": model.model_id_in(computes_in),
        "threshold_logit": model.threshold(config.threshold).logit,
        "precision": computes_in,
        "num_images": listed.num_images,
        "manifest_sha256": listed.sha256,
        "num_other_files": listed.num_other_files,
        "num_repeated_uris": listed.num_repeated_uris,
        "batch_size": batch_size,
        "rows_per_chunk": rows_per_chunk,
        "config": config.to_json(),
    }
    if config.skip_known is not None:
        _build_known(config, model, computes_in)
    lock.require()
    files.write_json(files.join(output, RUN), run)  # last: an output that has it has the rest
    return run


def _build_known(config: ScoringOptions, model: Spec, computes_in: str) -> None:
    earlier = config.skip_known or ""
    number = reuse.build(earlier, model, computes_in, _known_file(config), num_crops=config.crops)
    say(f"{number:,} images of {earlier} have a score of this model")


def _known_file(config: ScoringOptions) -> str:
    return files.join(files.absolute(config.output), CHUNKS, reuse.FILE)


def _list(pages: Callable[[], Iterable[manifest.Page]], manifest_uri: str) -> manifest.Listed:
    """Write the manifest; if that fails, nothing of it stays."""
    last_line = time.monotonic()
    files.delete_directory(manifest_uri)  # of a run that was killed while it listed
    try:
        with manifest.Writer(manifest_uri) as writer:
            for page in pages():
                writer.add(page)
                if time.monotonic() - last_line >= SECONDS_BETWEEN_LINES:
                    last_line = time.monotonic()
                    say(f"list: {writer.num_images:,} images")
            return writer.close()
    except BaseException:
        files.delete_directory(manifest_uri)
        raise


def _sizes(
    num_images: int,
    config: ScoringOptions,
    placement: ScoringPlacement,
    preparation: Preparation,
    variants: int,
) -> tuple[int, int]:
    """Images a forward pass, and a chunk: whole batches, so that only the last pass may have empty places."""
    batch_size = config.batch_size or default_batch_size(preparation.image_size, use_gpu=placement.use_gpu)
    share = ceil(num_images / placement.num_actors)
    if share < batch_size:
        return share, share
    pixels = preparation.image_size**2 * config.crops * variants
    wanted = min(share / CHUNKS_PER_ACTOR, PIXELS_PER_CHUNK / pixels, manifest.ROWS_PER_GROUP)
    return batch_size, max(1, round(wanted / batch_size)) * batch_size


class _Run:
    """The scoring of the chunks that are left, by one driver."""

    def __init__(
        self,
        spec: ScorerSpec,
        layout: Layout,
        plan: Callable[[Sequence[Node]], ScoringPlacement],
        tally: Tally,
        stage: str,
    ):
        self._spec, self._layout, self._plan, self._tally, self._stage = spec, layout, plan, tally, stage
        self._watch = ErrorWatch(spec.max_error_share)
        self._metrics = RunMetrics(stage, spec.run_id)

    def score(self, chunks: list[manifest.Chunk], placement: ScoringPlacement) -> None:
        """Score the chunks, however many nodes are lost meanwhile."""
        with (
            Patience(self._stage) as self._patience,
            Progress(self._stage, sum(chunk.num_rows for chunk in chunks), rate=self._tally.rate) as progress,
        ):
            while chunks:
                left = self._round(chunks, placement, progress)
                if len(left) == len(chunks):
                    raise JobError(
                        f"all scorers were lost, and {len(left):,} chunks with them; see `ray status` and the logs of "
                        "their nodes. What is written stays, and --resume goes on from there."
                    )
                chunks = left
                if chunks:
                    say(
                        f"{self._stage}: {len(chunks):,} chunks were lost with the node or process that held them: "
                        "once more"
                    )
                    placement = plan_with_autoscaler(self._plan)

    def _round(
        self, chunks: list[manifest.Chunk], placement: ScoringPlacement, progress: Progress
    ) -> list[manifest.Chunk]:
        """Have each chunk scored; returns those that were lost on the way."""
        dataset = scoring_dataset(chunks, self._spec, placement)
        left = {chunk.index: chunk for chunk in chunks}
        with closing(reports_of(dataset)) as reports:  # or Ray Data's threads outlive a failure
            for report in reports:
                self._patience.begun()
                del left[report.index]
                self._count(report)
                progress.update(self._watch.done, self._watch.errors.total())
        self._tally.add_statistics(dataset.stats())
        return list(left.values())

    def _count(self, report: Report) -> None:
        self._watch.add(report)
        self._layout.written(report.index)
        self._tally.add(report)
        self._metrics.update(self._watch.done, self._watch.errors, self._tally.rate.per_s)
