"""Labelled images: their files' facts, and folders of them."""

import pyarrow as pa

from deepfake_ray import schema


def facts(rows):
    names = schema.FACTS.names
    return pa.table({name: [row.get(name) for row in rows] for name in names}, schema=schema.FACTS)


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return str(folder)


def images_in(*places, number=20):
    return [f"{place}/{i}.png" for place in places for i in range(number)]
