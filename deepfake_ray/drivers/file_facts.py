"""What the files of images tell, read by Ray Data's tasks."""

from dataclasses import dataclass

import pyarrow as pa
import ray
from ray.data import DataContext

from deepfake_ray.cluster.placement import plan_reading
from deepfake_ray.cluster.ray_data import context
from deepfake_ray.cluster.session import cluster_nodes
from deepfake_ray.errors import JobError
from deepfake_ray.images.decode import Limits
from deepfake_ray.images.facts import read_facts
from deepfake_ray.schema import FACTS

IMAGES_PER_LOOK = 1024


@dataclass(frozen=True)
class ReadFacts:
    """Runs in Ray Data's tasks: what the files of images tell."""

    limits: Limits

    def __call__(self, work: pa.Table) -> pa.Table:
        """A column uri -> `schema.FACTS` and the column uri, in order."""
        found = read_facts(work["uri"].to_pylist(), self.limits)
        columns = {name: [getattr(image, name) for image in found] for name in FACTS.names}
        return pa.table(columns, schema=FACTS).append_column("uri", work["uri"])


def image_facts(uris: pa.ChunkedArray, limits: Limits) -> pa.Table:
    """`schema.FACTS` of images, in the order of `uris`, read by as many tasks as there are CPUs.

    Raises:
        JobError: what came back is not of these images in this order.
    """
    cpus, label = plan_reading(cluster_nodes())
    table = pa.table({"uri": uris})
    blocks = [table.slice(start, IMAGES_PER_LOOK) for start in range(0, len(table), IMAGES_PER_LOOK)]
    with DataContext.current(context(cpus)):
        facts = ray.data.from_arrow(blocks).map_batches(
            ReadFacts(limits),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=min(1.0, cpus),
            label_selector=dict(label),
        )
    return require_order(pa.concat_tables(ray.get(facts.to_arrow_refs())), table["uri"])


def require_order(facts: pa.Table, uris: pa.ChunkedArray) -> pa.Table:
    """Facts without their column uri, which must be `uris`: what follows pairs them with other columns by position."""
    if not facts["uri"].equals(uris):
        raise JobError(
            f"The facts of files must be in the order of the {len(uris):,} images: {len(facts):,} came, or in another; "
            "this is a fault of the program."
        )
    return facts.drop_columns("uri")
