"""Write a BERT encoder as the GGUF file that llama.cpp reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FILE_TYPES = {
    gguf.GGMLQuantizationType.F32: gguf.LlamaFileType.ALL_F32,
    gguf.GGMLQuantizationType.F16: gguf.LlamaFileType.MOSTLY_F16,
    gguf.GGMLQuantizationType.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
}


@dataclass(frozen=True, kw_only=True)
class BertShape:
    """Sizes of one encoder; `context_length` is in tokens, its own two marks included."""

    context_length: int
    width: int
    blocks: int
    heads: int
    feed_forward: int
    epsilon: float = 1e-12


def write_bert(
    path: Path,
    *,
    name: str,
    shape: BertShape,
    tokens: Sequence[str],
    tensors: Mapping[str, NDArray[np.float32]],
    matrix_type: gguf.GGMLQuantizationType,
) -> Path:
    """Write the encoder to `path` and return it; the file appears there only when it is complete.

    `tokens` is a WordPiece vocabulary (`##` marks a continuation), `tensors` has the names of llama.cpp's
    `bert`; matrices are stored as `matrix_type` (F32, F16 or Q8_0), vectors and positions as F32.
    """
    partial = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(partial, "bert")
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[matrix_type])
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.blocks)
    writer.add_head_count(shape.heads)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_layer_norm_eps(shape.epsilon)
    writer.add_causal_attention(value=False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    _add_word_pieces(writer, tokens)
    for tensor_name, tensor in tensors.items():
        kept_whole = tensor.ndim == 1 or tensor_name in {"position_embd.weight", "token_types.weight"}
        stored_as = gguf.GGMLQuantizationType.F32 if kept_whole else matrix_type
        writer.add_tensor(tensor_name, gguf.quantize(tensor, stored_as), raw_dtype=stored_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return partial.replace(path)


def _add_word_pieces(writer: gguf.GGUFWriter, tokens: Sequence[str]) -> None:
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_type_count(2)
    writer.add_token_list([_llama_spelling(token) for token in tokens])
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in SPECIALS else gguf.TokenType.NORMAL for token in tokens]
    )
    pad, unknown, start, end, mask = (tokens.index(special) for special in SPECIALS)
    writer.add_pad_token_id(pad)
    writer.add_unk_token_id(unknown)
    writer.add_bos_token_id(start)
    writer.add_sep_token_id(end)
    writer.add_mask_token_id(mask)


def _llama_spelling(token: str) -> str:
    """WordPiece marks continuations with `##`; llama.cpp marks the beginnings instead."""
    if token in SPECIALS:
        return token
    return token[2:] if token.startswith("##") else "\u2581" + token
