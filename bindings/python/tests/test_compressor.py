"""The package's own API, on a real model."""

import asyncio
import concurrent.futures
import multiprocessing
import pickle
import re
import signal
import subprocess
import sys
import threading
import time

import prefold
import pytest

LONG = "The committee met on Tuesday and decided to postpone the vote until spring. " * 400


def test_import_is_quick_and_opens_nothing():
    code = (
        "import time; t = time.perf_counter(); import prefold; "
        "d = time.perf_counter() - t; import sys; "
        "assert 'prefold._native' not in sys.modules; print(d)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.1


def test_a_question_decides_what_is_kept(compressor, documents):
    result = compressor.compress(documents, question="Who is the mayor?", rate=0.5)
    assert "Ilse Brandt" in result.text
    assert result.text.endswith("Who is the mayor?")
    assert result.tokens_after <= result.target
    assert 3 in result.kept
    for context in result.contexts:
        source = documents[context.index]
        for start, end in context.spans:
            assert source[start:end].strip() in context.text
    assert "".join(piece.text for piece in result.pieces).startswith(documents[0])
    assert result.usage_dict()["compressed_prompt"] == result.text


def test_spans_count_characters(compressor):
    text = "Ünïcode wörter stehen überall. " * 20 + "東京は日本の首都です。" * 10
    result = compressor.compress(text, rate=0.4)
    (context,) = result.contexts
    joined = "".join(text[start:end] for start, end in context.spans)
    assert joined.replace(" ", "") == context.text.replace(" ", "").replace("\n", "")


def test_pieces_are_shown_by_a_notebook(compressor, documents):
    shown = compressor.compress(documents, question="Who is the mayor?", rate=0.4)._repr_html_()
    assert "<s " in shown and "tokens" in shown
    assert "The mayor is called Ilse Brandt." in re.sub("<[^>]*>", "", shown)


def test_a_callable_ranks(compressor, documents):
    result = compressor.compress(
        documents,
        question="?",
        rate=0.3,
        rank_method=lambda contexts, question: [float("baker" in c) for c in contexts],
    )
    assert result.kept[-1] == 2 or 2 in result.kept
    with pytest.raises(prefold.InputError, match="1 scores for 5 contexts"):
        compressor.compress(documents, rank_method=lambda contexts, question: [1.0])


def test_batches_give_each_its_result_or_error(compressor, documents):
    made = compressor.compress_batch(
        [
            {"contexts": documents, "rate": 0.5},
            {"contexts": documents, "rate": 7},
            {"contexts": documents, "question": "Who?", "target_tokens": 40},
        ]
    )
    assert isinstance(made[0], prefold.Result) and isinstance(made[2], prefold.Result)
    assert isinstance(made[1], prefold.InputError) and "rate" in str(made[1])
    alone = compressor.compress(documents, question="Who?", target_tokens=40)
    assert made[2].text == alone.text


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"rate": 0}, prefold.InputError, "rate"),
        ({"rate": "much"}, prefold.InputError, "rate"),
        ({"rate": float("nan")}, prefold.InputError, "arguments"),
        ({"rat": 0.5}, prefold.InputError, "rat"),
        (
            {"target_tokens": 1, "question": "What is this all about?"},
            prefold.BudgetError,
            "budget",
        ),
        ({"granularity": "letters"}, prefold.InputError, "granularity"),
        ({"force_tokens": object()}, prefold.InputError, "object"),
        ({"deadline": -1.0}, prefold.InputError, "deadline"),
    ],
)
def test_errors_are_ours_with_the_librarys_text(compressor, documents, arguments, error, text):
    with pytest.raises(error, match=text):
        compressor.compress(documents, **arguments)


def test_lone_surrogates_are_an_error_of_ours(compressor):
    with pytest.raises(prefold.PrefoldError):
        compressor.compress("a \ud800 b " * 50)


def test_a_missing_model_is_named():
    with pytest.raises(prefold.PrefoldError, match="no-such-model"):
        prefold.Compressor("no-such-model.gguf").open()


def test_a_deadline_ends_a_call(compressor):
    start = time.monotonic()
    with pytest.raises(prefold.DeadlineExceeded):
        compressor.score(LONG, deadline=0.2)
    assert time.monotonic() - start < 5
    with pytest.raises(TimeoutError):
        compressor.compress(LONG, rate=0.5, granularity="token", deadline=0.1)


def test_progress_is_told_on_this_thread(compressor):
    told = []
    me = threading.get_ident()

    def progress(done, total):
        told.append((done, total, threading.get_ident()))

    compressor.compress(LONG[:6000], rate=0.5, granularity="token", progress=progress)
    assert told and all(thread == me and 0 <= done <= total for done, total, thread in told)

    def fails(done, total):
        raise KeyError("from the callback")

    with pytest.raises(KeyError, match="from the callback"):
        compressor.compress(LONG[:6000], rate=0.5, granularity="token", progress=fails)


def test_ctrl_c_ends_a_call(model):
    code = f"""
import os, signal, threading, time, prefold
compressor = prefold.Compressor({model!r}, device="cpu").open()
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    compressor.score({LONG!r} * 20)
except KeyboardInterrupt:
    print(time.monotonic() - start)
"""
    # A shell that starts a test run in the background has the signal ignored.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
        )
    finally:
        signal.signal(signal.SIGINT, heard)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 10


def test_cancelling_a_task_ends_its_call(compressor):
    async def main():
        task = asyncio.create_task(compressor.acompress(LONG, rate=0.5, granularity="token"))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await compressor.acompress("A short text. It has two sentences.", rate=0.6)

    assert asyncio.run(main()).text


def test_threads_share_a_compressor_and_agree(compressor, documents):
    want = compressor.compress(documents, question="Who is the mayor?", rate=0.5).text
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(compressor.compress, documents, question="Who is the mayor?", rate=0.5)
            for _ in range(32)
        ]
        assert {job.result().text for job in jobs} == {want}


def _in_a_process(compressor, documents):
    return compressor.compress(documents, rate=0.5).text


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pickles_and_processes(compressor, documents, method):
    assert repr(pickle.loads(pickle.dumps(compressor))) == repr(compressor)
    want = compressor.compress(documents, rate=0.5).text
    context = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        assert pool.apply_async(_in_a_process, (compressor, documents)).get(120) == want


def test_results_pickle(compressor, documents):
    result = compressor.compress(documents, rate=0.5)
    assert pickle.loads(pickle.dumps(result)) == result


WORK = {
    "a long call": "compressor.score(LONG * 20)",
    "its progress": "compressor.compress(LONG, rate=0.5, granularity='token', progress=print)",
    "calls in a row": "compressor.rank([LONG[:2000], LONG[:500]], 'Who met on Tuesday?')",
    "short calls": "prefold.count_tokens(LONG, 'o200k_base')",
}


@pytest.mark.parametrize("work", WORK)
def test_the_interpreter_ends_while_work_continues(model, work):
    code = f"""
import threading, time, prefold
LONG = {LONG[:76]!r} * 400
compressor = prefold.Compressor({model!r}, device="cpu").open()
def work():
    while True:
        {WORK[work]}
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.5)
"""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stderr)
    # Calls are cancelled, not waited for.
    assert time.monotonic() - start < 20


def test_scores_tokens_and_counts(compressor):
    text = "The quick brown fox jumps over the lazy dog."
    ids = compressor.tokenize(text)
    nll = compressor.score(text)
    assert len(nll) >= len(ids) - 1 and all(value >= 0 for value in nll)
    assert compressor.count_tokens(text) == len(ids)
    assert prefold.count_tokens(text) == prefold.count_tokens(text, "cl100k_base") == 10
    with pytest.raises(prefold.PrefoldError):
        prefold.count_tokens(text, "no-such-vocabulary")


def test_ranks(compressor, documents):
    ranked = compressor.rank(documents, "Who is the mayor?")
    assert sorted(index for index, _ in ranked) == list(range(5))
    assert ranked[0][0] == 3
    scores = [score for _, score in ranked]
    assert scores == sorted(scores, reverse=True)


def test_prefixes_are_arrays_without_a_copy(compressor, tmp_path):
    numpy = pytest.importorskip("numpy")
    prefix = compressor.prefill("The mayor is called Ilse Brandt.")
    k = prefix.keys(0)
    assert k.shape == (prefix.kv_heads, prefix.tokens, prefix.head_dim)
    assert k.dtype == numpy.float32 and not k.flags.writeable
    assert numpy.asarray(prefix.keys(0)).ctypes.data == k.ctypes.data
    path = tmp_path / "p.safetensors"
    prefix.save(path)
    again = prefold.Prefix.open(path)
    assert again.content_id == prefix.content_id
    assert numpy.array_equal(again.values(3), prefix.values(3))
    del prefix
    assert numpy.isfinite(k).all()
    with pytest.raises(prefold.InputError, match="layer 999"):
        again.keys(999)
    text = compressor.generate(" The mayor is called", prefix=again, max_new_tokens=4)
    assert isinstance(text, str)
