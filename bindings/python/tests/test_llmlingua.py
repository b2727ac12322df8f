"""The drop-in: llmlingua's signature, and its results token for token."""

import importlib
import importlib.util
import inspect
import json
import pathlib
import pickle
import sys

import prefold
import prefold.llmlingua
import pytest
from prefold.llmlingua import PromptCompressor

CALLS = ("compress_prompt", "structured_compress_prompt")
# Names and defaults of llmlingua 0.2.2, in their order.
SIGNATURES = json.loads(
    pathlib.Path(__file__).with_name("llmlingua_signatures.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def lingua(model):
    return PromptCompressor(model, device_map="cpu")


# All of them take minutes: the crate's own tests run them each time, those of this package the
# short ones.
@pytest.mark.parametrize(
    ("longest", "count"), [(900, 8), pytest.param(None, 29, marks=pytest.mark.slow)]
)
def test_golden_rows(lingua, golden, longest, count):
    rows = [row for row in golden if row["call"] in CALLS]
    rows = [row for row in rows if longest is None or row["result"]["origin_tokens"] <= longest]
    assert len(rows) == count
    for row in rows:
        assert getattr(lingua, row["call"])(**row["args"]) == row["result"], row["name"]


@pytest.mark.slow
def test_golden_rows_by_position(lingua, golden):
    row = next(row for row in golden if row["name"] == "own_iq")
    args = dict(row["args"])
    first = [args.pop(name) for name in ("context", "instruction", "question", "rate")]
    assert lingua(*first, **args) == row["result"]


def test_golden_losses(lingua, golden):
    rows = [row for row in golden if row["call"] == "token_logprobs"]
    assert len(rows) == 3
    for row in rows:
        nll = lingua.get_ppl(row["args"]["text"], "token")
        want = [-value for value in row["result"]["logprobs"]]
        assert nll == pytest.approx(want, abs=2e-3), row["name"]


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    parameters = list(inspect.signature(getattr(PromptCompressor, name)).parameters.values())[1:]
    ours = [
        [p.name] if p.default is p.empty else [p.name, p.default]
        for p in parameters
        if p.kind is not p.KEYWORD_ONLY
    ]
    assert ours == SIGNATURES[name]


def test_what_it_cannot_do_is_one_sentence(model, lingua):
    with pytest.raises(NotImplementedError, match="without an encoder"):
        lingua.compress_prompt(["a"], question="b", rank_method="sentbert")
    classifier = PromptCompressor(model, device_map="cpu", use_llmlingua2=True)
    with pytest.raises(NotImplementedError, match="token classifier"):
        classifier.compress_prompt(["a"])
    with pytest.raises(NotImplementedError, match="structured_compress_prompt"):
        classifier.structured_compress_prompt(["a"])
    with pytest.raises(ValueError, match="use_llmlingua2"):
        PromptCompressor(model, use_llmlingua2=True, budget="exact")
    with pytest.warns(UserWarning, match="model_config"):
        PromptCompressor(model, model_config={"revision": "main"})
    assert not hasattr(lingua, "tokenizer")
    with pytest.raises(NotImplementedError, match="past_key_values"):
        lingua.get_ppl("a", past_key_values=())


ENCODERS = pathlib.Path(__file__).resolve().parents[3] / "tests/data/golden/encoders"


@pytest.mark.parametrize("name", ["mbert-tokens", "xlmr-tokens"])
def test_llmlingua2_is_the_originals(name):
    rows = [json.loads(line) for line in (ENCODERS / "llmlingua2.jsonl").open(encoding="utf-8")]
    rows = [row for row in rows if row["model"] == name and "result" in row]
    assert len(rows) > 80
    lingua = PromptCompressor(str(ENCODERS / name), device_map="cpu", use_llmlingua2=True)
    for row in rows:
        assert lingua.compress_prompt(**row["args"]) == row["result"], row["name"]


def test_an_encoder_ranks(model):
    lingua = PromptCompressor(model, device_map="cpu", encoder=ENCODERS / "bert")
    short = lingua.compress_prompt(
        ["The cat sat on the mat.", "Rain fell all day long.", "A dog barked at the moon."] * 4,
        question="Where did the cat sit?",
        target_token=12,
        context_budget="+0",
        use_token_level_filter=False,
        rank_method="sentbert",
    )
    assert 0 < short["compressed_tokens"] < short["origin_tokens"]


def test_cuda_falls_back_to_the_cpu_with_a_warning(model):
    lingua = PromptCompressor(model)
    again = pickle.loads(pickle.dumps(lingua))
    for each in (lingua, again):
        with pytest.warns(UserWarning, match="using the CPU") as told:
            assert each.get_token_length("The quick brown fox.", False) == 5
        assert len(told) == 1


def test_errors_are_those_of_the_original(lingua):
    with pytest.raises(AssertionError, match="rate 2"):
        lingua.compress_prompt(["a"], rate=2)
    with pytest.raises(AssertionError, match="question"):
        lingua.compress_prompt(["a"], rank_method="longllmlingua")
    with pytest.raises(prefold.InputError, match="rate"):
        lingua.compress_prompt(["a"], rate=-1)
    with pytest.raises(prefold.UnsupportedError, match="bge"):
        lingua.compress_prompt(["a"], question="b", rank_method="bge")
    with pytest.raises(TypeError):
        lingua.compress_prompt(["a"], ratio=0.5)


def test_empty_prompts(lingua):
    for context in ([], "", [""]):
        got = lingua.compress_prompt(context)
        assert set(got) == {
            "compressed_prompt",
            "origin_tokens",
            "compressed_tokens",
            "ratio",
            "rate",
            "saving",
        }


def test_exact_budget_under_its_names(model, documents):
    exact = PromptCompressor(model, device_map="cpu", budget="exact")
    got = exact.compress_prompt(documents, question="Who is the mayor?", target_token=60)
    assert got["compressed_tokens"] <= 60 and "Ilse Brandt" in got["compressed_prompt"]
    assert 3 in [context.index for context in got["contexts"]]


def test_a_function_ranks(lingua, documents):
    def rank(contexts, question):
        return [float("baker" in context) for context in contexts]

    got = lingua.compress_prompt(
        documents,
        rank_method=rank,
        target_token=10,
        context_budget="+0",
        use_token_level_filter=False,
    )
    assert got["compressed_prompt"] == documents[2]
    with pytest.raises(prefold.InputError, match="1 scores for 5 contexts"):
        lingua.compress_prompt(documents, rank_method=lambda contexts, question: [1.0])


def test_json_keeps_its_structure(lingua):
    text = "The committee met on Tuesday and decided to postpone the vote until spring. " * 8
    data = {"id": 987654, "name": "A < B", "notes": text, "tags": ["x", "y"]}
    entry = {"rate": 0.3, "compress": False, "value_type": "str", "pair_remove": False}
    config = {name: dict(entry) for name in data}
    config["id"]["value_type"] = "int"
    config["tags"]["value_type"] = "list"
    config["notes"]["compress"] = True
    got = lingua.compress_json(data, config)
    short = got["compressed_prompt"]
    assert {**short, "notes": ""} == {**data, "notes": ""}
    assert 0 < len(short["notes"]) < len(text) / 2
    assert got["compressed_tokens"] < got["origin_tokens"]
    del config["id"]
    with pytest.raises(AssertionError, match="'id'"):
        lingua.compress_json(data, config)


def test_json_by_a_yaml_file(lingua, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "a:\n  rate: 0.5\n  compress: false\n  value_type: str\n  pair_remove: false\n",
        encoding="utf-8",
    )
    assert lingua.compress_json({"a": "b"}, str(path))["compressed_prompt"] == {"a": "b"}
    with pytest.raises(ValueError, match="no-such"):
        lingua.compress_json({"a": "b"}, "no-such.yaml")


def test_install(monkeypatch):
    for name in ("llmlingua", "llmlingua.prompt_compressor"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    prefold.llmlingua.install()
    assert importlib.import_module("llmlingua").PromptCompressor is PromptCompressor
    found = importlib.import_module("llmlingua.prompt_compressor")
    assert found.PromptCompressor is PromptCompressor
    assert importlib.util.find_spec("llmlingua") is not None


def test_lengths_losses_and_ranks(lingua, documents):
    text = "The quick brown fox."
    assert lingua.get_token_length(text, use_oai_tokenizer=True) == 5
    nll = lingua.get_ppl(text, "token")
    assert lingua.get_ppl(text) == pytest.approx(sum(nll) / len(nll))
    assert lingua.get_ppl(text, "token", condition_mode="after", condition_pos_id=2) == nll[2:]
    assert lingua.max_position_embeddings > 1000
    for method in ("bm25", "longllmlingua"):
        ranked = lingua.get_rank_results(documents, "Who is the mayor?", method, "after", [20] * 5)
        assert sorted(index for index, _ in ranked) == list(range(5))
        assert method == "bm25" or ranked[0][0] == 3


def test_recover(lingua):
    original = "The mill was built, after long talks, in 1901."
    compressed = "The mill was built, in 1901."
    assert lingua.recover(original, compressed, "It was built, in 1901.") == (
        "It was built, after long talks, in 1901."
    )
