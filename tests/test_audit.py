import pyarrow as pa

from deepfake_ray import schema
from deepfake_ray.audit import audit


def table(rows):
    names = ("label", "split", "source", "group")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    empty = {f.name: [None] * len(rows) for f in schema.MANIFEST if f.name not in names}
    empty |= {"row": list(range(len(rows))), "uri": [str(i) for i in range(len(rows))]}
    return pa.table({**empty, **columns}).select(schema.MANIFEST.names).cast(schema.MANIFEST)


def test_groups_in_two_splits_are_named():
    found = audit(
        table(
            [
                ("real", "train", None, "anna"),
                ("fake", "train", "gan", "anna"),
                ("real", "test", None, "anna"),
                ("fake", "test", "gan", "bert"),
            ]
        )
    )
    assert found["groups_in_several_splits"] == ["anna"]
    assert found["num_images_by_source"] == {"gan": {"real": 0, "fake": 2}}
    assert len(found["warnings"]) == 1
    assert "anna" in found["warnings"][0]


def test_imbalance_is_warned_of():
    rows = [("real", "train", None, None)] * 2 + [("fake", "train", None, None)] * 9
    found = audit(table(rows))
    assert found["num_images"] == {"train": {"real": 2, "fake": 9}}
    assert "train is unbalanced (2 real, 9 fake)" in found["warnings"][0]
    assert audit(table(rows[:9]))["warnings"] == []
