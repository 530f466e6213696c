"""Scores of an earlier run."""

from contextlib import nullcontext
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chunks import jpeg, listed, rows_of, scorer_spec

from deepfake_ray import schema
from deepfake_ray.data import manifest, tables
from deepfake_ray.errors import UserError
from deepfake_ray.models import bundle
from deepfake_ray.processes.isolation import Items
from deepfake_ray.scoring import reuse
from deepfake_ray.scoring.worker import ChunkScorer

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def earlier_run(folder):
    """Five images: by etag; by size and time; one that failed; one of another model; one of which nothing is listed."""
    rows = tables.manifest_rows(
        {"uri": ["s3://b/0", "/x/1", "/x/2", "/x/3", "/x/4"], "etag": ["e0", None, None, None, None],
         "num_bytes": [10, 11, 12, 13, None], "mtime": [NOW, NOW, NOW, NOW, None]}, 5)  # fmt: skip
    manifest.write(manifest.manifest_from_pages([manifest.Page(rows)]), str(folder / "manifest"))
    common = {"status": "ok", "run_id": "r", "scored_at": NOW, "model_id": "m", "format": "jpeg", "width": 7}
    scores = [
        {**common, "row": i, "uri": uri, "sha256": f"{i:02d}" * 32, "num_bytes": 10 + i, "logit": i + 0.5}
        for i, uri in enumerate(rows["uri"].to_pylist())
    ]
    scores[2] |= {"status": "error", "logit": None}
    scores[3] |= {"model_id": "other"}
    (folder / "predictions").mkdir()
    pq.write_table(pa.Table.from_pylist(scores, schema=schema.PREDICTIONS), folder / "predictions" / "part-0.parquet")
    return folder


class Model:
    """Stands for a bundle whose scores have the id m."""

    def model_id_in(self, precision):
        return "m" if precision == "fp32" else f"m-{precision}"

    def made(self, model_id):
        return model_id.startswith("m")


def now(uri, etag=None, num_bytes=None, mtime=None):
    return tables.manifest_rows({"uri": [uri], "etag": [etag], "num_bytes": [num_bytes], "mtime": [mtime]}, 1)


@pytest.mark.parametrize("place", ["", "/predictions"])
def test_what_is_the_same_still_is_known(tmp_path, place):
    file = str(tmp_path / "known.sqlite")
    assert reuse.build(f"{earlier_run(tmp_path)}{place}", Model(), "fp32", file) == 3
    found = reuse.Known(file)
    (image,) = found.by_version(now("s3://b/0", "e0", 999)).values()
    assert (image.logit, image.sha256, image.num_bytes, image.format, image.width, image.height) == (
        0.5, "00" * 32, 10, "jpeg", 7, None,
    )  # fmt: skip
    assert [one.logit for one in found.by_version(now("/x/1", None, 11, NOW)).values()] == [1.5]
    for changed in (
        now("s3://b/0", "e1", 10, NOW),  # another etag
        now("/x/1", None, 12, NOW),  # another size
        now("/x/1", None, 11, datetime(2026, 1, 2, tzinfo=UTC)),  # another time
        now("/x/9", None, 11, NOW),  # another name
        now("/x/2", None, 12, NOW),  # had no score
        now("/x/3", None, 13, NOW),  # another model's
        now("/x/4"),  # nothing to tell by
    ):
        assert found.by_version(changed) == {}
    assert found.by_sha256("04" * 32).logit == 4.5
    assert found.by_sha256("03" * 32) is None


def test_no_predictions_there(tmp_path):
    with pytest.raises(UserError, match="skip-known must name"):
        reuse.build(str(tmp_path), Model(), "fp32", str(tmp_path / "known.sqlite"))


def test_scores_of_another_number_of_crops_are_refused(tmp_path):
    (earlier_run(tmp_path) / "run.json").write_text('{"config": {"crops": 5}}')
    file = str(tmp_path / "known.sqlite")
    with pytest.raises(UserError, match="has those of 5, this run has --crops 1"):
        reuse.build(str(tmp_path), Model(), "fp32", file)
    assert reuse.build(str(tmp_path), Model(), "fp32", file, num_crops=5) == 3


@pytest.mark.parametrize(("noted", "was"), [('"precision": "bf16", ', "was bf16"), ("", "was not noted")])
def test_scores_of_another_precision_are_refused(tmp_path, noted, was):
    (earlier_run(tmp_path) / "run.json").write_text(f'{{{noted}"model_id": "m-bf16", "config": {{}}}}')
    file = str(tmp_path / "known.sqlite")
    with pytest.raises(UserError, match=f"skip-known.*precision {was}.* and is now fp32"):
        reuse.build(str(tmp_path), Model(), "fp32", file)


def test_known_images_are_neither_fetched_nor_decoded(untrained, tmp_path, monkeypatch):
    """Unchanged files are not even opened; a copy of known bytes is read, but not decoded; new ones are scored."""
    first = tmp_path / "first"
    first.mkdir()
    chunks = listed(first, {f"{i}.jpg": jpeg(i) for i in range(4)})
    spec = scorer_spec(untrained, first)
    scorer = ChunkScorer(spec)
    for chunk in chunks:
        scorer(chunk, Items(lambda _: nullcontext()))
    before = rows_of(spec, chunks)
    (first / "chunks").rename(first / "predictions")

    folder = first / "images"
    (folder / "copy.jpg").write_bytes(jpeg(2))
    (folder / "new.jpg").write_bytes(jpeg(9))
    manifest.write(manifest.list_images(str(folder)), str(tmp_path / "manifest"))
    chunks = manifest.chunks(str(tmp_path / "manifest"), rows_per_chunk=100)
    for i in range(4):
        (folder / f"{i}.jpg").unlink()
    file = str(tmp_path / "known.sqlite")
    assert reuse.build(str(first), bundle.load_spec(untrained), "fp32", file) == 4
    decoded = []
    from deepfake_ray.images import loading

    decode = loading.decode
    monkeypatch.setattr(loading, "decode", lambda data, *more: decoded.append(data) or decode(data, *more))
    spec = scorer_spec(untrained, tmp_path, known=file)
    report = ChunkScorer(spec)(chunks[0], Items(lambda _: nullcontext()))
    assert (report.num_images, report.num_known, dict(report.errors_by_code)) == (6, 5, {})
    assert decoded == [jpeg(9)]
    rows = rows_of(spec, chunks)
    facts = ("sha256", "num_bytes", "format", "width", "height", "jpeg_quality", "logit", "p_fake", "predicted_label")
    for name, same in (("0.jpg", "0.jpg"), ("3.jpg", "3.jpg"), ("copy.jpg", "2.jpg")):
        assert [rows[name][fact] for fact in facts] == [before[same][fact] for fact in facts]
