"""report.html in a real browser: what it asks the network for, what its console says, what it shows."""

import html
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
from simulated import MODEL, predictions, simulated

from deepfake_ray.evaluation import comparison, figures, metrics, report, robustness, summary
from deepfake_ray.evaluation.error_gallery import Mistake
from deepfake_ray.models.scores import threshold_at

AT = threshold_at(0.4, 1.0)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def degraded(frame):
    """Each image after two degradations, which leave its score as it is."""
    rows = [frame.assign(degradation=name) for name in ("jpeg_50", "half_size")]
    return pa.concat_tables([pa.Table.from_pandas(one) for one in rows])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with all that there can be: sources without reals, small slices, warnings, odd names."""
    labels, logits = simulated(600)
    sources = [None if label == 0 else ("stylegan <b>2</b>" if i % 9 else "rare") for i, label in enumerate(labels)]
    scored = predictions(labels, logits, source=sources, format=["JPEG" if i % 3 else "PNG" for i in range(600)])
    frame = scored.to_pandas().assign(uri=[f"/{i}.jpg" for i in range(600)], row=range(600))
    result = summary.measure(scored, MODEL, "balanced") | {
        "split": "test", "data": "/data/<script>alert(1)</script>", "model": "/model", "num_errors": 3,
        "command": "python jobs/evaluate.py", "warnings": ["99.0% of the images are called real"],
        "comparison": {"with": "/other", "model_id": "beef"}
        | comparison.compare(frame, frame, (AT, threshold_at(0.6, 1.0))),
        "audit": {
            "zero_pixel_auc": 0.7, "duplicates": {"num_across_classes": 2},
            "leaks": {"num_exact": 1, "num_near": 0, "examples": [
                {"uri": "/test/seen.jpg", "training_uri": "/train/seen.jpg", "split": "train", "differing_bits": None}
            ]},
        },
        "degradations": robustness.figures_by_degradation(pa.Table.from_pandas(frame), degraded(frame), AT),
    }  # fmt: skip
    labels, logits = summary.arrays(scored)
    pictures = figures.draw_evaluation(labels, logits, result, MODEL.temperature)
    random = np.random.default_rng(0)
    errors = []
    for i, label in enumerate(["fake"] * 6 + ["real"] * 5):
        shape = (160, 240) if i % 2 else (240, 160)
        picture = simplejpeg.encode_jpeg(np.full((*shape, 3), random.integers(0, 256, 3), np.uint8)) if i else b""
        uri = f"s3://bucket/some/long/place/of/images/{label}/" + f"{i:02}<i>" * 12 + ".jpg"
        source = None if label == "real" else "stylegan <b>2</b>"
        errors.append(
            Mistake(uri=uri, source=source, true_label=label, p_fake=1.2e-5 * i, picture=picture, heat=picture)
        )
    run = {"run_id": "0123", "manifest_sha256": "ab" * 32, "errors_by_code": {"truncated": 3}}
    text = metrics.classification_report(labels, logits, AT)
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(report.html(result, pictures, errors, text, run))
    return path


def open_in_chromium(page):
    """What chromium makes of a page: its DOM, what its console says, and the URLs that it asks for."""
    if CHROMIUM is None:
        assert not os.environ.get("REQUIRE_CHROMIUM"), "there is no chromium"
        pytest.skip("there is no chromium to open the report in")
    log = page.with_suffix(".json")
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr",
            f"--user-data-dir={page.with_suffix('.profile')}", f"--log-net-log={log}", "--virtual-time-budget=3000",
            "--window-size=1400,900", "--hide-scrollbars",
            "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    # Chromium has errands of its own, which no origin initiated.
    urls = {event["url"] for event in events if event.get("initiator", "not an origin") != "not an origin"}
    return done.stdout, console, {url for url in urls if not url.startswith(("file:", "data:"))}


@pytest.fixture(scope="module")
def opened(page):
    return open_in_chromium(page)


def test_the_report_asks_the_network_for_nothing(opened, page):
    assert opened[2] == set()
    other = page.with_name("other.html")
    other.write_text(page.read_text().replace("<h1>", '<img src="http://127.0.0.1:9/x.png"><h1>'))
    assert open_in_chromium(other)[2] == {"http://127.0.0.1:9/x.png"}


MEASURE = """<script>addEventListener("load", () => {
  const right = all => Math.max(...[...document.querySelectorAll(all)].map(one => one.getBoundingClientRect().right));
  parent.postMessage({
    inner: innerWidth, page: document.documentElement.scrollWidth, body: document.body.scrollWidth,
    numbers: right(".words td"), boxes: right(".scroll, img, p, dd, pre, figcaption"),
    inside: [...document.querySelectorAll(".scroll")].filter(one => one.scrollWidth > one.clientWidth).length,
  }, "*");
});</script>"""
FRAME = """<iframe src="{name}" style="width: {width}px; height: 800px; border: 0"></iframe>
<script>onmessage = event => { document.body.dataset.widths = JSON.stringify(event.data); };</script>"""


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_never_scrolls_sideways(page, width):
    """On a phone and on a desk: tables that are wider scroll inside themselves."""
    measured = page.with_name(f"{width}.html")
    measured.write_text(page.read_text().replace("</body>", f"{MEASURE}</body>"))
    frame = page.with_name(f"frame-{width}.html")  # a window of chromium's is 500 px wide at least
    frame.write_text(FRAME.replace("{name}", measured.name).replace("{width}", str(width)))
    dom, *_ = open_in_chromium(frame)
    found = json.loads(html.unescape(re.search('data-widths="([^"]*)"', dom)[1]))
    assert found["inner"] == width
    assert max(found["page"], found["body"], found["boxes"]) <= width
    assert found["numbers"] <= width, "numbers without a threshold are seen without scrolling"
    assert (found["inside"] > 0) == (width == 390)


def test_the_console_stays_silent(opened):
    assert opened[1] == []


def test_the_report_shows_its_figures_and_escapes_names(opened, page):
    dom = opened[0]
    assert dom.count("data:image/png;base64,") == 8
    assert dom.count("data:image/jpeg;base64,") == 20
    assert dom.count("<img") == 28
    assert "(cannot be read any more)" in dom
    assert "source stylegan &lt;b&gt;2&lt;/b&gt;" in dom
    assert "s3://bucket/some/long/place/of/images/real/07&lt;i&gt;" in dom, "not the name alone"
    assert "p_fake 1.2e-05" in dom
    assert "/test/seen.jpg" in dom
    assert "posted and passed on" not in dom, "it was not measured"
    assert "stylegan &lt;b&gt;2&lt;/b&gt;" in dom
    assert "<script" not in page.read_text()
    assert "By source" in dom
    assert "By format" in dom
    assert "Against all reals" in dom
    assert "Fewer than 50 images" in dom


def test_the_verdict_has_the_numbers_that_were_measured(page):
    labels, logits = simulated(600)
    p_fake = 1 / (1 + np.exp(-logits))
    found = np.mean(p_fake[labels == 1] >= 0.4)
    assert f"{100 * found:.1f} % of the fakes" in page.read_text()


def test_every_threshold_is_drawn_the_given_one_too():
    from unittest.mock import patch

    with patch("matplotlib.axes.Axes.axvline") as line:
        names = ("default", "balanced", "fpr_1", "fpr_5", "given")
        figures.score_histogram(np.array([0, 1]), np.array([0.1, 0.9]), dict.fromkeys(names, 0.5))
    assert [call.kwargs["label"] for call in line.call_args_list] == [f"{name} 0.5" for name in names]
    assert len({str(call.kwargs["ls"]) for call in line.call_args_list}) == 5
