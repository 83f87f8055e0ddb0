"""Models as a node tells of them, by the sizes of known ones."""

from hypothesis import strategies as st

from gaelp_tasks.footprints import KvMemoryModel, read_shape

MIB, GIB = 1024**2, 1024**3

#: as /api/show tells them: llama.block_count and so on
SMOLLM2 = {
    "block_count": 30, "context_length": 8192, "embedding_length": 576, "feed_forward_length": 1536,
    "attention.head_count": 9, "attention.head_count_kv": 3,
}  # fmt: skip
LLAMA_8B = {
    "block_count": 32, "context_length": 131072, "embedding_length": 4096, "feed_forward_length": 14336,
    "attention.head_count": 32, "attention.head_count_kv": 8,
}  # fmt: skip
LLAMA_1B = {
    "block_count": 16, "context_length": 131072, "embedding_length": 2048, "feed_forward_length": 8192,
    "attention.head_count": 32, "attention.head_count_kv": 8, "attention.key_length": 64,
    "attention.value_length": 64,
}  # fmt: skip
QWEN_7B = {
    "block_count": 28, "context_length": 131072, "embedding_length": 3584, "feed_forward_length": 18944,
    "attention.head_count": 28, "attention.head_count_kv": 4,
}  # fmt: skip
MINILM = {
    "block_count": 6, "context_length": 512, "embedding_length": 384, "feed_forward_length": 1536,
    "attention.head_count": 12, "attention.causal": False, "pooling_type": 1,
}  # fmt: skip


def shape(sizes, architecture="llama", *, weights_bytes=GIB, name="m", **more):
    info = {f"{architecture}.{size}": value for size, value in sizes.items()}
    return read_shape(name, weights_bytes, {"general.architecture": architecture, **info}, **more)


def kv(sizes, num_ctx, kv_cache_type="f16", **more):
    return KvMemoryModel(shape=shape(sizes, **more), num_ctx=num_ctx, kv_cache_type=kv_cache_type)


#: of safety
factors = st.floats(1, 8)
