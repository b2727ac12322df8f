"""Ray Data on a real local cluster; skipped where Ray is not installed."""

import os
import signal
import sys

import pytest

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

import prefold  # noqa: E402
from prefold.ray import Compress  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

QUESTIONS = ["Who is the mayor?", "Where is the school?", "When does the baker open?"]


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    # Actors cannot import a file of tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.shutdown()


def rows(documents):
    return [{"id": i, "docs": documents, "q": QUESTIONS[i % 3], "note": "kept"} for i in range(24)]


def compressed(dataset, kind, model, actors=2, **more):
    return dataset.map_batches(
        kind,
        fn_constructor_kwargs=dict(contexts="docs", question="q", rate=0.5, model=model, **more),
        compute=ray.data.ActorPoolStrategy(size=actors),
        batch_size=4,
        num_cpus=1,
        batch_format="pyarrow",
    )


def wanted(model, documents):
    compressor = prefold.Compressor(model, device="cpu", threads=1)
    return {q: compressor.compress(documents, question=q, rate=0.5).text for q in QUESTIONS}


def check(got, model, documents):
    want = wanted(model, documents)
    assert sorted(row["id"] for row in got) == list(range(24))
    for row in got:
        assert row["compressed"] == want[row["q"]] and row["note"] == "kept"
        assert row["compressed_tokens_after"] < row["compressed_tokens_before"]
        assert row["compressed_error"] is None


def test_two_actors_give_what_one_process_gives(cluster, model, documents):
    dataset = ray.data.from_items(rows(documents))
    check(compressed(dataset, Compress, model).take_all(), model, documents)


class DiesOnce(Compress):
    """An actor that is killed in the middle of a batch, the first time."""

    def __init__(self, marker, **settings):
        super().__init__(**settings)
        self.marker = marker

    def __call__(self, batch):
        made = super().__call__(batch)
        try:
            os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return made
        os.kill(os.getpid(), signal.SIGKILL)


def test_an_actor_that_is_killed_is_replaced(cluster, model, documents, tmp_path):
    marker = str(tmp_path / "died")
    dataset = ray.data.from_items(rows(documents))
    got = compressed(dataset, DiesOnce, model, marker=marker).take_all()
    assert os.path.exists(marker)
    check(got, model, documents)
