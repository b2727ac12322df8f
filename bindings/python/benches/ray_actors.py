"""Throughput of Ray Data with one and with two actors of one thread each, and their results.

    python benches/ray_actors.py MODEL [ROWS]

The first pass of each is not timed: it starts the actors and opens the models.
"""

import sys
import time

import prefold
import ray
from prefold.ray import Compress

TEXT = (
    "The town hall was built in 1901. It has a clock and two towers. The roof is green. "
    "The school stands by the river. It has nine rooms and a yard. Lessons begin at eight. "
    "The baker opens at six. His bread is dark and sells out by noon. "
    "The mayor is called Ilse Brandt. She was elected in May and likes to sail. "
    "A market is held on Fridays. Farmers sell eggs, honey and early potatoes there. "
)


def main():
    model = sys.argv[1]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 48
    rows = [{"id": i, "text": f"Report {i}. " + TEXT * 3} for i in range(count)]
    settings = dict(
        contexts="text", rate=0.5, model=model, device="cpu", threads=1, granularity="token"
    )
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    seconds, texts = {}, {}
    for actors in (1, 2):
        dataset = ray.data.from_items(rows).repartition(count // 4).materialize()
        pool = ray.data.ActorPoolStrategy(size=actors)
        work = dataset.map_batches(
            Compress,
            fn_constructor_kwargs=settings,
            compute=pool,
            num_cpus=1,
            batch_size=4,
            batch_format="pyarrow",
        )
        # Batches come as they are done: from the first on all actors are at work.
        arrived = []
        made = {}
        for batch in work.iter_batches(batch_size=4, prefetch_batches=0):
            arrived.append(time.perf_counter())
            made.update(zip(batch["id"].tolist(), batch["compressed"].tolist(), strict=True))
        seconds[actors] = (arrived[-1] - arrived[0]) / (len(arrived) - 1) * len(arrived)
        texts[actors] = made
        print(f"{actors} actors: {count / seconds[actors]:.2f} rows/s")
    ray.shutdown()
    single = prefold.Compressor(model, device="cpu", threads=1)
    want = {r["id"]: single.compress(r["text"], rate=0.5, granularity="token").text for r in rows}
    assert texts[1] == texts[2] == want
    print(
        f"twice the actors: {seconds[1] / seconds[2]:.2f} times the throughput; "
        "results as one process's"
    )


if __name__ == "__main__":
    main()
