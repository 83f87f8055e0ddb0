"""Random models small enough to make in a test: real files for the real engine, by numpy and gguf alone.

The chat model speaks pseudo-prose. Its last layer reads three things from the residual stream: a constant,
the class of the last word (which decides the class of the next one: determiner, noun, verb ...), and a random
part that the attention layers feed from the whole context (which decides the word). So it reads as sentences,
depends on every token of its prompt, and runs at thousands of tokens a second.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from gaelp_tasks.demo.bert import SPECIALS as SPECIALS_OF_BERT
from gaelp_tasks.demo.bert import BertShape, write_bert

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END_OF_TURN = "<|im_end|>"
SPECIALS = ("<|endoftext|>", "<|im_start|>", END_OF_TURN)


def _after_space(words: str) -> list[str]:
    return [f" {word}" for word in words.split()]


WORDS = {
    "start": ["The", "A", "One", "Every", "No", "Some", "Each", "This"],
    "open": _after_space("The A One Every No Some Each This"),
    "determiner": _after_space("the a one every no some each this"),
    "adjective": _after_space(
        "old quiet red small bright slow naïve hollow green patient early distant warm silver narrow gentle"
        " broken curious steady pale"
    ),
    "noun": _after_space(
        "river bird garden stone engine letter café winter harbour clock forest window worker queue lantern"
        " mountain story signal bridge painter orchard morning machine question teacher island market cloud"
        " captain memory village kettle"
    ),
    "verb": _after_space(
        "finds carries watches follows mends remembers leaves answers builds hears keeps opens crosses paints"
        " measures greets teaches repairs"
    ),
    "preposition": _after_space("near under beyond beside before behind above"),
    "conjunction": _after_space("and while because until but"),
    "stop": list(".!?"),
    "json": list('{}[]:,"'),
}
CLASSES = ("other", "end", *WORDS)
# Score of each class after another; what is not named is out of reach unless a grammar leaves nothing else.
FOLLOWS = {
    "other": {"start": 0.0},
    "end": {"start": 0.0},
    "start": {"adjective": 0.0, "noun": 0.0},
    "open": {"adjective": 0.0, "noun": 0.0},
    "determiner": {"adjective": 0.0, "noun": 0.0},
    "adjective": {"noun": 0.0},
    "noun": {"verb": 0.0, "preposition": 0.0, "conjunction": 0.0, "stop": 2.5},
    "verb": {"determiner": 0.0},
    "preposition": {"determiner": 0.0},
    "conjunction": {"determiner": 0.0},
    "stop": {"open": 0.0},
    "json": {"json": 0.0},
}
UNREACHABLE, LAST_RESORT = -60.0, -25.0
# Under a JSON grammar the shortest way out wins: close the string, then the object.
JSON_HABITS = {'"': 6.0, "}": 4.0, "]": 4.0, ":": 0.0, ",": 0.0, "{": 2.0, "[": 0.0}

Matrix = NDArray[np.float32]


def write_tiny_chat_model(
    path: Path,
    *,
    seed: int = 0,
    width: int = 64,
    blocks: int = 2,
    context_length: int = 8192,
    sentences: float | None = None,
) -> Path:
    """Write a random chat model (llama architecture, F16) to `path`, return it; same arguments, same bytes.

    The default is 0.25 MB and runs at thousands of tokens a second; `width=512, blocks=8` is 39 MB and much
    slower. `width` is a multiple of 32, `context_length` in tokens. `sentences` is about how many sentences a
    sampled answer has before it ends by itself; None: it never ends, and `num_predict` rules.
    """
    random = np.random.default_rng(seed)
    pieces = _vocabulary()
    partial = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_name(f"tiny random chat model, seed {seed}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(context_length)
    writer.add_embedding_length(width)
    writer.add_block_count(blocks)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(width // 4)
    writer.add_value_length(width // 4)
    writer.add_rope_dimension_count(width // 4)
    writer.add_feed_forward_length(2 * width)
    writer.add_layer_norm_rms_eps(1e-5)
    _add_tokens(writer, pieces)
    for name, tensor in _chat_tensors(random, pieces, width, blocks, sentences):
        writer.add_tensor(name, tensor if tensor.ndim == 1 else tensor.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return partial.replace(path)


def write_tiny_embed_model(path: Path, *, seed: int = 0, width: int = 64, context_length: int = 256) -> Path:
    """Write a random text encoder (BERT architecture, F16) to `path`, return it; same arguments, same bytes.

    Its vector of a text is the mean of one random vector per word piece, so texts that share words are near
    each other and the same text always has the same vector. `width` is the number of dimensions.
    """
    random = np.random.default_rng(seed)
    letters = sorted({chr(code).lower() for code in range(33, 127)})
    words = sorted({word.strip() for group in WORDS.values() for word in group if word.strip().isalpha()})
    known = dict.fromkeys([*SPECIALS_OF_BERT, *letters, *(word.lower() for word in words)])
    tokens = [*known, *(f"##{letter}" for letter in letters)]
    shape = BertShape(context_length=context_length, width=width, blocks=1, heads=2, feed_forward=width)
    return write_bert(
        path,
        name=f"tiny random text encoder, seed {seed}",
        shape=shape,
        tokens=tokens,
        tensors=dict(_encoder_tensors(random, len(tokens), shape)),
        matrix_type=gguf.GGMLQuantizationType.F16,
    )


def _vocabulary() -> Mapping[str, str]:
    """Every token with its class: 256 bytes, the marks of the chat template, and the words."""
    pieces = dict.fromkeys(_byte_letters(), "other") | dict.fromkeys(SPECIALS, "other")
    pieces[END_OF_TURN] = "end"
    letters = _byte_letters()
    for group, words in WORDS.items():
        for word in words:
            pieces["".join(letters[byte] for byte in word.encode())] = group
    return pieces


def _byte_letters() -> list[str]:
    """One printable letter per byte, as the vocabulary of GPT-2 spells them."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _add_tokens(writer: gguf.GGUFWriter, pieces: Mapping[str, str]) -> None:
    tokens = list(pieces)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(
        "llama-bpe"
    )  # takes whole words from the vocabulary and needs no merges for them
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in SPECIALS else gguf.TokenType.NORMAL for token in tokens]
    )
    writer.add_token_merges(["t h"])  # the loader insists on a list; this one can never apply
    writer.add_eos_token_id(tokens.index(END_OF_TURN))
    writer.add_eot_token_id(tokens.index(END_OF_TURN))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _chat_tensors(
    random: np.random.Generator, pieces: Mapping[str, str], width: int, blocks: int, sentences: float | None
) -> Iterator[tuple[str, Matrix]]:
    fixed = 1 + len(CLASSES)  # residual: the constant, one place per class, and the free rest

    def noise(rows: int, columns: int, scale: float = 1.0) -> Matrix:
        return np.float32(scale / np.sqrt(columns)) * random.standard_normal((rows, columns), np.float32)

    def into_the_rest(columns: int) -> Matrix:
        matrix = noise(width, columns)
        matrix[:fixed] = 0
        return matrix

    classes = np.array([CLASSES.index(group) for group in pieces.values()])
    embedding = random.standard_normal((len(pieces), width), np.float32)
    embedding[:, :fixed] = 0
    embedding[:, 0] = 1
    embedding[np.arange(len(pieces)), 1 + classes] = 4
    loudness = np.sqrt((embedding**2).sum(axis=1).mean() / width)

    output = noise(len(pieces), width, scale=2.0)
    is_json = classes == CLASSES.index("json")
    output[is_json] = 0
    output[:, 0] = [JSON_HABITS.get(piece, 0.0) * loudness for piece in pieces]
    output[:, 1:fixed] = _scores(sentences)[:, classes].T * loudness / 4

    yield "token_embd.weight", embedding
    yield "output_norm.weight", np.ones(width, np.float32)
    yield "output.weight", output
    for block in range(blocks):
        yield f"blk.{block}.attn_norm.weight", np.ones(width, np.float32)
        yield f"blk.{block}.attn_q.weight", noise(width, width)
        yield f"blk.{block}.attn_k.weight", noise(width // 2, width)
        yield f"blk.{block}.attn_v.weight", noise(width // 2, width)
        yield f"blk.{block}.attn_output.weight", into_the_rest(width)
        yield f"blk.{block}.ffn_norm.weight", np.ones(width, np.float32)
        yield f"blk.{block}.ffn_gate.weight", noise(2 * width, width)
        yield f"blk.{block}.ffn_up.weight", noise(2 * width, width)
        yield f"blk.{block}.ffn_down.weight", into_the_rest(2 * width)


def _scores(sentences: float | None) -> Matrix:
    """Score of the class in the column after the class in the row."""
    scores = np.full((len(CLASSES), len(CLASSES)), UNREACHABLE, np.float32)
    scores[:, CLASSES.index("json")] = LAST_RESORT
    for before, after in FOLLOWS.items():
        for group, score in after.items():
            scores[CLASSES.index(before), CLASSES.index(group)] = score
    if sentences is not None:
        goes_on = np.log(len(WORDS["open"])) + 2  # log-sum-exp of the openings' scores, about
        odds = 1 / max(sentences - 1, 1e-3)
        scores[CLASSES.index("stop"), CLASSES.index("end")] = goes_on + np.log(odds)
    return scores


def _encoder_tensors(
    random: np.random.Generator, tokens: int, shape: BertShape
) -> Iterator[tuple[str, Matrix]]:
    width = shape.width

    def zeros(*sizes: int) -> Matrix:
        return np.zeros(sizes, np.float32)

    yield "token_embd.weight", random.standard_normal((tokens, width), np.float32)
    yield "token_types.weight", zeros(2, width)
    yield "position_embd.weight", zeros(shape.context_length, width)
    yield "token_embd_norm.weight", np.ones(width, np.float32)
    yield "token_embd_norm.bias", zeros(width)
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"):
        yield f"blk.0.{part}.weight", zeros(width, width)
        yield f"blk.0.{part}.bias", zeros(width)
    for norm in ("attn_output_norm", "layer_output_norm"):
        yield f"blk.0.{norm}.weight", np.ones(width, np.float32)
        yield f"blk.0.{norm}.bias", zeros(width)
