"""Scoring chunks without Ray."""

import os
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
import simplejpeg
from chunks import jpeg, listed, rows_of, scorer_spec

from deepfake_ray.data import manifest
from deepfake_ray.errors import ImageError, JobError
from deepfake_ray.models import bundle
from deepfake_ray.models.spec import Spec
from deepfake_ray.processes.isolation import Isolated, Items
from deepfake_ray.scoring.spec import chunk_file
from deepfake_ray.scoring.worker import ChunkScorer


def test_the_same_bytes_get_the_same_score_wherever_they_lie(untrained, tmp_path):
    """Also as the only image of a last batch, and among broken ones."""
    files = {f"{i:02d}.jpg": jpeg(i) for i in range(11)} | {"03.jpg": b"broken"}
    files |= {"20.jpg": jpeg(0), "21.jpg": jpeg(1), "22.jpg": b"", "23.jpg": jpeg(0)}
    chunks = listed(tmp_path, files)
    assert [chunk.num_rows for chunk in chunks] == [5, 5, 5]
    spec = scorer_spec(untrained, tmp_path)
    scorer = ChunkScorer(spec)
    for chunk in chunks:
        scorer(chunk, Items(lambda _: nullcontext()))
    rows = rows_of(spec, chunks)
    assert rows["00.jpg"]["logit"] == rows["20.jpg"]["logit"] == rows["23.jpg"]["logit"]
    assert rows["01.jpg"]["logit"] == rows["21.jpg"]["logit"] != rows["00.jpg"]["logit"]
    assert (rows["03.jpg"]["error_code"], rows["22.jpg"]["error_code"]) == ("not_an_image", "empty")


@pytest.mark.parametrize("weight", [np.nan, np.inf, 1e38])
def test_what_is_no_number_is_no_score(untrained, tmp_path, weight):
    """NaN is not above a threshold, so that it was called real."""
    spec, arrays = bundle.load(untrained)
    last = max(name for name in arrays if name.endswith(".weight"))
    arrays = {**arrays, last: np.full_like(arrays[last], weight)}
    bundle.save(str(tmp_path / "broken"), spec, arrays)
    (chunk,) = listed(tmp_path, {"a.jpg": jpeg(0), "b.jpg": b"no image"})
    spec = scorer_spec(str(tmp_path / "broken"), tmp_path)
    with pytest.raises(JobError, match=r"the model gives (nan|-?inf) for \S+a\.jpg, which is no score"):
        ChunkScorer(spec)(chunk, Items(lambda _: nullcontext()))
    assert not os.path.exists(chunk_file(spec.chunks, 0))


@pytest.fixture
def bad_decoder(tmp_path, monkeypatch):
    """A decoder that dies and hangs: put into the scorer's process by Python's own start-up hook."""
    folder = tmp_path / "hook"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, signal, time, simplejpeg\n"
        "good = simplejpeg.decode_jpeg\n"
        "def bad(data, *more, **options):\n"
        "    if b'CRASH' in data: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    if b'HANG' in data: time.sleep(60)\n"
        "    return good(data, *more, **options)\n"
        "simplejpeg.decode_jpeg = bad\n"
    )
    monkeypatch.syspath_prepend(folder)


def test_a_decoder_that_crashes_or_hangs_costs_one_image(untrained, tmp_path, bad_decoder):
    files = {f"{i}.jpg": jpeg(i) for i in range(5)}
    files["1.jpg"] += b"CRASH"
    files["3.jpg"] += b"HANG"
    (chunk,) = listed(tmp_path, files)
    spec = scorer_spec(untrained, tmp_path)
    scorer = Isolated("deepfake_ray.scoring.worker:ChunkScorer", spec, timeout_s=2)
    report = scorer(chunk)
    scorer.close()
    assert report.errors_by_code == Counter(decoder_crashed=1, timeout=1)
    rows = rows_of(spec, [chunk])
    assert rows["1.jpg"]["error_code"] == "decoder_crashed"
    assert rows["1.jpg"]["error_message"] == "crashed the decoder's process (SIGSEGV), twice"
    assert (rows["3.jpg"]["error_code"], rows["3.jpg"]["error_message"]) == ("timeout", "took longer than 2 s")
    assert [rows[f"{i}.jpg"]["status"] for i in (0, 2, 4)] == ["ok"] * 3


def test_a_storage_that_always_fails_is_given_up(untrained, tmp_path, monkeypatch):
    from deepfake_ray.errors import ErrorCode
    from deepfake_ray.images import loading

    table = tmp_path / "list.txt"
    table.write_text("".join(f"s3://bucket/{i}.jpg\n" for i in range(3000)))
    manifest.write(manifest.list_images(str(table)), str(tmp_path / "manifest"))
    (chunk,) = manifest.chunks(str(tmp_path / "manifest"), rows_per_chunk=8192)

    def forbidden(uri, *_):
        raise ImageError(ErrorCode.FORBIDDEN, "InvalidAccessKeyId")

    monkeypatch.setattr(loading, "fetch", forbidden)
    spec = scorer_spec(untrained, tmp_path)
    report = ChunkScorer(spec)(chunk, Items(lambda _: nullcontext()))
    assert (report.is_written, report.num_images, report.errors_by_code) == (False, 1000, Counter(forbidden=1000))
    assert report.example.endswith("forbidden: InvalidAccessKeyId")
    assert not os.path.exists(chunk_file(spec.chunks, 0))


def test_the_mean_logit_of_several_crops_counts(tmp_path):
    """Against the crops cut and scored by hand."""
    import torch

    from deepfake_ray.images.decode import decode
    from deepfake_ray.images.preprocessing import CROP, Preparation, spread_crops
    from deepfake_ray.models import networks
    from deepfake_ray.models.inference import Predictor

    torch.manual_seed(1)
    arrays = {key: value.numpy() for key, value in networks.build("cnn").state_dict().items()}
    preparation = Preparation(image_size=32, resize=CROP)
    spec = Spec(arch="cnn", preparation=preparation, temperature=2.0, thresholds={})
    place = str(tmp_path / "model")
    bundle.save(place, spec, arrays)
    assert bundle.load_spec(place).preparation == preparation
    large = simplejpeg.encode_jpeg(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8), quality=95)
    files = {"a.jpg": large, "b.jpg": b"", "c.jpg": jpeg(1)}
    (chunk,) = listed(tmp_path, files)
    spec = scorer_spec(place, tmp_path, num_crops=3)
    ChunkScorer(spec)(chunk, Items(lambda _: nullcontext()))
    rows = rows_of(spec, [chunk])
    pixels = decode(large, spec.limits).pixels
    corners = [(round(x * (70 - 32)), round(y * (50 - 32))) for x, y in spread_crops(3)]
    assert len(set(corners)) == 3
    crops = np.stack([pixels[top : top + 32, left : left + 32] for left, top in corners])
    logits = Predictor(place, precision="fp32").logits(crops)
    assert np.ptp(logits) > 1e-4
    assert rows["a.jpg"]["logit"] == pytest.approx(logits.mean(), abs=1e-6)
    assert rows["a.jpg"]["p_fake"] == pytest.approx(1 / (1 + np.exp(-logits.mean() / 2)), abs=1e-6)
    assert rows["b.jpg"]["error_code"] == "empty"
    assert rows["c.jpg"]["status"] == "ok"
