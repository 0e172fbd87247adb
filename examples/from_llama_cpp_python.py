"""A program that used llama-cpp-python, with phiggml. What it was stands above each part.

    python examples/from_llama_cpp_python.py phi3.gguf

docs/migrating.md has the whole table.
"""

from __future__ import annotations

import argparse

import phiggml as pg

MESSAGES = [{"role": "user", "content": "What is GGUF?"}]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


# llm = Llama("phi3.gguf", n_ctx=1024, n_gpu_layers=-1, n_threads=2, verbose=False)
# ...
# llm.close()
def opened(path: str) -> pg.Session:
    # The path alone, for one session; or a Model, which several sessions can share. n_gpu_layers
    # is "auto" and verbose is off. `with` closes it.
    return pg.Session(path, n_ctx=1024, threads=2)


# out = llm.create_completion("The child", max_tokens=16, temperature=0.7, seed=1, stop=["\n"])
# out["choices"][0]["text"], out["choices"][0]["finish_reason"], out["usage"]["completion_tokens"]
def complete(session: pg.Session) -> tuple[str, str, int]:
    out = session.generate(
        "The child", max_tokens=16, sampling=pg.Sampling(temperature=0.7, seed=1), stop=["\n"]
    )
    return out.text, out.finish_reason, out.timings.tokens


# for part in llm.create_completion("The child", max_tokens=16, temperature=0, stream=True):
#     print(part["choices"][0]["text"], end="")
def stream(session: pg.Session) -> list[str]:
    greedy = pg.Sampling(temperature=0)
    return [c.text for c in session.stream("The child", max_tokens=16, sampling=greedy)]


# out = llm.create_chat_completion(MESSAGES, max_tokens=100, temperature=0)
# messages.append(out["choices"][0]["message"])
def chat(session: pg.Session) -> list[dict[str, str]]:
    out = session.chat(MESSAGES, max_tokens=100, sampling=pg.Sampling(temperature=0))
    return [*MESSAGES, out.message]


# for part in llm.create_chat_completion(MESSAGES, max_tokens=100, stream=True):
#     print(part["choices"][0]["delta"].get("content", ""), end="")
def stream_chat(session: pg.Session) -> str:
    chunks = session.stream_chat(MESSAGES, max_tokens=100, sampling=pg.Sampling(temperature=0))
    return "".join(chunk.text for chunk in chunks)


# llm.create_chat_completion(
#     MESSAGES, response_format={"type": "json_object", "schema": PERSON}, temperature=0
# )
def structured(session: pg.Session) -> str:
    greedy = pg.Sampling(temperature=0)
    return session.chat(MESSAGES, json_schema=PERSON, sampling=greedy).text


# llm.create_completion("The sky is", grammar=LlamaGrammar.from_string('root ::= " red" | " blue"'))
def constrained(session: pg.Session) -> str:
    return session.generate("The sky is", max_tokens=8, grammar='root ::= " red" | " blue"').text


# llm = Llama("phi3.gguf", logits_all=True)
# out = llm.create_completion("The child", max_tokens=4, logprobs=2)
# out["choices"][0]["logprobs"]["token_logprobs"]
def logprobs(session: pg.Session) -> list[float]:
    out = session.generate("The child", max_tokens=4, logprobs=2)
    return [token.logprob for token in out.logprobs or ()]


# llm = Llama("phi3.gguf", embedding=True)
# [item["embedding"] for item in llm.create_embedding(["A cat sat.", "A dog ran."])["data"]]
def embed(session: pg.Session) -> list[list[float]]:
    # The same session answers and embeds. Vectors have length 1; normalize=False leaves them.
    vectors = session.embed(["A cat sat.", "A dog ran."], pooling=None, normalize=False)
    return [[float(x) for x in vector] for vector in vectors]


# llm = Llama("phi3.gguf", draft_model=LlamaPromptLookupDecoding(max_ngram_size=2,
#                                                               num_pred_tokens=10))
# llm.create_completion("The child", max_tokens=16)
def guessed(session: pg.Session) -> str:
    draft = pg.PromptLookup(n=10, ngram=2)
    return session.generate("The child", max_tokens=16, draft=draft).text


# llm.detokenize(llm.tokenize(b"What is GGUF?", add_bos=False)).decode()
def tokens(session: pg.Session) -> str:
    model = session.model
    return model.detokenize(model.tokenize("What is GGUF?", add_special=False))


# state = llm.save_state()
# llm.load_state(state)
def save(session: pg.Session, path: str) -> None:
    session.save(path, overwrite=True)
    session.load(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a GGUF file")
    with opened(parser.parse_args().model) as session:
        parts = (complete, stream, chat, stream_chat, structured, constrained, logprobs, guessed)
        for part in (*parts, tokens):
            print(f"{part.__name__}: {part(session)!r}")
        print(f"embed: {len(embed(session))} vectors")


if __name__ == "__main__":
    main()
