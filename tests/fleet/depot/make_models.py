#!/usr/bin/env python3
# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the tiny models that the depot's hub serves: real architectures, real tokenizers, random weights.

``python3 make_models.py OUTDIR [--git GITDIR]`` writes ``OUTDIR/<namespace>/<name>/<files>`` and
``OUTDIR/index.json``::

    {"gpufleet-fixtures/tiny-qwen2": {"revision": "<40 hex>", "files": {"config.json": {"size": 1, "sha256": "...",
     "blob_id": "<git blob sha1>", "lfs": false}}}}

and, with ``--git``, the models' code repositories as bare git repositories ``GITDIR/<owner>/<name>.git`` and
``GITDIR/index.json`` (``{"<owner>/<name>": ["<first commit>", "<second commit>"]}``).

Only the standard library is used and nothing depends on the machine, the clock or the Python version, so the same
bytes come out everywhere and the catalogue can name their sha256. The answers of these models are babble: the
output rows of all tokens but whole words are zero, so that a greedy decoder always picks a word.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import json
import os
import pathlib
import pickle
import random
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

Files = dict[str, bytes]

NAMESPACE = "gpufleet-fixtures"
VOCAB_SIZE = 8192
LFS_SUFFIXES = (".safetensors", ".bin")

# The words that a byte-level BPE is trained on, the commonest first, so that ordinary English splits sensibly.
WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one
you were all her she there would their we him been has when who will no more if out so up said what its about than
into them can only other time new some could these two may first then do any like my now over such our man me even
most made after also did many off before must well back through years where much your way down should because long
each just state those people too mr how little good world make very year still see own work men day get here old life
both between being under three never know same last another while us might great go come since against right came
take used himself few house american use place during high without again home around small however found mrs part
school thought went say general once upon every war don does got united left number until always away course fact
water less public put think almost hand enough far took head yet better system set told nothing night end why called
didn eyes find going look asked later point knew next program city business group give toward young let room days
social present given several order national second possible rather per face among form important often things looked
early white john case become large big need four within felt children along saw best church ever least power
development light thing seemed family interest want members others mind country area done turned although open god
service problem certain kind different thus began door help means sense whole matter hello model language node driver
card memory answer question token weight machine python software server network process kernel package environment
repository commit revision version install download verify install check fleet cloud compute tensor graph layer
attention speech audio sound voice listen speak write read learn train test smoke prompt reply result measure second
minute hour week month green blue yellow black river mountain ocean forest garden street bridge tower window table
chair paper letter number figure picture story music dance summer winter spring autumn morning evening yesterday today
tomorrow north south east west doctor teacher student driver captain soldier farmer builder writer reader singer king
queen prince castle village island coast beach harbour ship train plane horse bird fish lion tiger wolf bear mouse
""".split()

ONSETS = ["", *"bcdfghjklmnpqrstvwxyz", "bl", "br", "ch", "cl", "cr", "dr", "fl", "fr", "gl", "gr", "pl", "pr", "qu"]
ONSETS += ["sc", "sh", "sl", "sm", "sn", "sp", "st", "str", "sw", "th", "tr", "tw", "wh"]
NUCLEI = ["a", "e", "i", "o", "u", "ai", "ea", "ee", "ie", "oo", "ou"]
CODAS = ["", "b", "ck", "d", "f", "g", "ll", "m", "n", "nd", "ng", "nt", "p", "r", "rd", "s", "ss", "st", "t", "x"]


# --- the tokenizer: byte-level BPE, as GPT-2, Qwen2 and Whisper have it -----------------------------------------------


def byte_alphabet() -> dict[int, str]:
    """Return the printable stand-in of each byte, as in GPT-2's published ``bytes_to_unicode``."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in plain}
    for extra, byte in enumerate(byte for byte in range(256) if byte not in table):
        table[byte] = chr(256 + extra)
    return table


def syllables(count: int) -> list[str]:
    """Return `count` different pseudo-syllables, in a fixed shuffled order."""
    every = [onset + nucleus + coda for onset in ONSETS for nucleus in NUCLEI for coda in CODAS]
    random.Random("syllables").shuffle(every)
    return list(dict.fromkeys(every))[:count]


def train_bpe(words: dict[str, int], merges_wanted: int) -> list[tuple[str, str]]:
    """Train byte-pair merges on `words` (spelling in the byte alphabet to weight), most frequent pair first.

    Ties go to the pair that sorts first, so the result does not depend on dictionary order.
    """
    spelt = {word: list(word) for word in words}
    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[str]] = {}
    for word, symbols in spelt.items():
        for pair in zip(symbols, symbols[1:]):
            pairs[pair] += words[word]
            where.setdefault(pair, set()).add(word)
    merges: list[tuple[str, str]] = []
    # A heap of (minus count, pair); an entry whose count is no longer true is passed over, the true one is in it too.
    queue = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(queue)
    while len(merges) < merges_wanted and queue:
        count, best = heapq.heappop(queue)
        if pairs.get(best, 0) != -count or not count:
            continue
        merges.append(best)
        touched: set[tuple[str, str]] = set()
        for word in where.pop(best):
            symbols = spelt[word]
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] -= words[word]
                touched.add(pair)
                if pair in where:
                    where[pair].discard(word)
            joined: list[str] = []
            position = 0
            while position < len(symbols):
                if tuple(symbols[position : position + 2]) == best:
                    joined.append(best[0] + best[1])
                    position += 2
                else:
                    joined.append(symbols[position])
                    position += 1
            spelt[word] = joined
            for pair in zip(joined, joined[1:]):
                pairs[pair] += words[word]
                touched.add(pair)
                where.setdefault(pair, set()).add(word)
        for pair in touched:
            heapq.heappush(queue, (-pairs[pair], pair))
    return merges


def vocabulary(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return (token to id, merges) of a byte-level BPE with exactly `size` tokens."""
    space = byte_alphabet()[32]
    weights: dict[str, int] = {}
    for rank, word in enumerate(dict.fromkeys(WORDS)):
        weights[space + word] = 100_000 // (rank + 1) + 10
        weights[word.capitalize()] = 10_000 // (rank + 1) + 5
    for syllable in syllables(6000):
        weights.setdefault(space + syllable, 3)
        weights.setdefault(syllable, 1)
    alphabet = sorted(byte_alphabet().values())
    tokens = {char: number for number, char in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for left, right in train_bpe(weights, 3 * size):
        if left + right in tokens:
            continue
        merges.append((left, right))
        tokens[left + right] = len(tokens)
        if len(tokens) == size:
            return tokens, merges
    raise SystemExit(f"the word list gives only {len(tokens)} tokens, {size} are wanted")


def tokenizer_json(
    tokens: dict[str, int], merges: list[tuple[str, str]], specials: list[str], template: list[str] | None = None
) -> bytes:
    """Return a ``tokenizer.json`` (format 1.0 of the `tokenizers` library)."""
    first = len(tokens)
    added = [
        {
            "id": first + offset,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for offset, content in enumerate(specials)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    processor: dict[str, Any] = dict(level, trim_offsets=False)
    if template:
        number = {content: first + offset for offset, content in enumerate(specials)}
        before = [{"SpecialToken": {"id": name, "type_id": 0}} for name in template[:-1]]
        after = [{"SpecialToken": {"id": template[-1], "type_id": 0}}]
        processor = {
            "type": "TemplateProcessing",
            "single": [*before, {"Sequence": {"id": "A", "type_id": 0}}, *after],
            "pair": [
                *before,
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
                *after,
            ],
            "special_tokens": {name: {"id": name, "ids": [number[name]], "tokens": [name]} for name in template},
        }
    return as_json(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "NFC"} if not template else None,
            "pre_tokenizer": level,
            "post_processor": processor,
            "decoder": level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": tokens,
                "merges": [f"{left} {right}" for left, right in merges],
            },
        },
        indent=1,
    )


def added_tokens_decoder(first: int, specials: list[str]) -> dict[str, Any]:
    """Return the block of that name of a ``tokenizer_config.json``."""
    return {
        str(first + offset): {
            "content": content,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for offset, content in enumerate(specials)
    }


# --- weights ----------------------------------------------------------------------------------------------------------

# A bfloat16 is the upper half of a float32; (byte - 127.5) / 1024 is exact in float32 and its spread is 0.07.
_BF16 = [struct.pack("<f", (byte - 127.5) / 1024.0)[2:] for byte in range(256)]
_F32 = [struct.pack("<f", (byte - 127.5) / 1024.0) for byte in range(256)]


def noise(name: str, count: int, dtype: str) -> bytes:
    """Return `count` numbers between -1/8 and 1/8 as `dtype` (BF16 or F32, little-endian), the same for a name."""
    table = _BF16 if dtype == "BF16" else _F32
    return b"".join([table[byte] for byte in random.Random(name).randbytes(count)])


def constant(value: float, count: int, dtype: str) -> bytes:
    """Return `count` times `value` (exact in bfloat16) as `dtype`."""
    packed = struct.pack("<f", value)
    return (packed[2:] if dtype == "BF16" else packed) * count


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]]) -> bytes:
    """Return a safetensors file: 8 bytes length, a JSON header, the `tensors` (name to dtype, shape, data)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + b"".join(data for _dtype, _shape, data in tensors.values())


class Weights:
    """Collects the tensors of one model; every name has its own generator."""

    def __init__(self, model: str, dtype: str) -> None:
        self.model = model
        self.dtype = dtype
        self.tensors: dict[str, tuple[str, list[int], bytes]] = {}

    def random(self, name: str, *shape: int) -> None:
        """Add a tensor of small random numbers."""
        count = 1
        for size in shape:
            count *= size
        self.tensors[name] = (self.dtype, list(shape), noise(f"{self.model} {name}", count, self.dtype))

    def fill(self, name: str, value: float, *shape: int) -> None:
        """Add a tensor whose elements all are `value`."""
        count = 1
        for size in shape:
            count *= size
        self.tensors[name] = (self.dtype, list(shape), constant(value, count, self.dtype))

    def rows(self, name: str, keep: set[int], rows: int, columns: int) -> None:
        """Add a matrix whose rows are random where `keep` names them and zero elsewhere."""
        zero = constant(0.0, columns, self.dtype)
        data = [
            noise(f"{self.model} {name} {row}", columns, self.dtype) if row in keep else zero for row in range(rows)
        ]
        self.tensors[name] = (self.dtype, [rows, columns], b"".join(data))


# --- the models -------------------------------------------------------------------------------------------------------


def as_json(value: Any, indent: int | None = 2) -> bytes:
    """Return `value` as the JSON text that hubs carry (UTF-8, a newline at the end)."""
    return (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode()


def whole_words(tokens: dict[str, int]) -> set[int]:
    """Return the ids of the tokens that are a real English word with a space before it."""
    space = byte_alphabet()[32]
    return {tokens[space + word] for word in WORDS if space + word in tokens and len(word) > 1}


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>'"
    " + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n"


def readme(name: str, what: str) -> bytes:
    """Return the model card."""
    return (
        f"---\nlicense: gpl-3.0\n---\n# {name}\n\nA fixture: {what}, random weights, a real tokenizer. It answers"
        " babble, on purpose.\nWritten by `tests/fleet/depot/make_models.py`.\n"
    ).encode()


def decoder_weights(model: str, config: dict[str, Any], words: set[int], bias: bool) -> Weights:
    """Return the tensors of a Llama or Qwen2 decoder of the shape that `config` describes."""
    weights = Weights(model, "BF16")
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    weights.random("model.embed_tokens.weight", vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for part, rows in (("q", hidden), ("k", keys), ("v", keys)):
            weights.random(f"{at}.self_attn.{part}_proj.weight", rows, hidden)
            if bias:
                weights.random(f"{at}.self_attn.{part}_proj.bias", rows)
        weights.random(f"{at}.self_attn.o_proj.weight", hidden, hidden)
        weights.random(f"{at}.mlp.gate_proj.weight", inner, hidden)
        weights.random(f"{at}.mlp.up_proj.weight", inner, hidden)
        weights.random(f"{at}.mlp.down_proj.weight", hidden, inner)
        weights.fill(f"{at}.input_layernorm.weight", 1.0, hidden)
        weights.fill(f"{at}.post_attention_layernorm.weight", 1.0, hidden)
    weights.fill("model.norm.weight", 1.0, hidden)
    weights.rows("lm_head.weight", words, vocab, hidden)
    return weights


def sharded(weights: Weights, shards: int) -> Files:
    """Return the weights as `shards` safetensors files and their index, cut where the bytes are about equal."""
    total = sum(len(data) for _dtype, _shape, data in weights.tensors.values())
    groups: list[dict[str, tuple[str, list[int], bytes]]] = [{} for _number in range(shards)]
    done = 0
    for name, tensor in weights.tensors.items():
        groups[min(shards - 1, done * shards // total)][name] = tensor
        done += len(tensor[2])
    files: Files = {}
    mapping: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        path = f"model-{number:05d}-of-{shards:05d}.safetensors"
        files[path] = safetensors(group)
        mapping.update(dict.fromkeys(group, path))
    files["model.safetensors.index.json"] = as_json({"metadata": {"total_size": total}, "weight_map": mapping})
    return files


def duplicate_pickle(weights: Weights) -> bytes:
    """Return the same weights as a pickle, the executable format that no catalogue entry may fetch."""
    return pickle.dumps({name: data for name, (_dtype, _shape, data) in weights.tensors.items()}, protocol=4)


def chat_tokenizer(tokens: dict[str, int], merges: list[tuple[str, str]], klass: str) -> Files:
    """Return the tokenizer files of a chat model with the ChatML template."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return {
        "tokenizer.json": tokenizer_json(tokens, merges, specials),
        "vocab.json": as_json(tokens, indent=None),
        "merges.txt": ("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)).encode(),
        "tokenizer_config.json": as_json(
            {
                "add_prefix_space": False,
                "added_tokens_decoder": added_tokens_decoder(len(tokens), specials),
                "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
                "bos_token": None,
                "chat_template": CHATML,
                "clean_up_tokenization_spaces": False,
                "eos_token": "<|im_end|>",
                "errors": "replace",
                "model_max_length": 2048,
                "pad_token": "<|endoftext|>",
                "split_special_tokens": False,
                "tokenizer_class": klass,
                "unk_token": None,
            }
        ),
    }


def tiny_qwen2(tokens: dict[str, int], merges: list[tuple[str, str]]) -> Files:
    """Return the files of a Qwen2 chat model of 1.3 million parameters, in two shards and with a duplicate pickle."""
    eos = len(tokens) + 2
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": len(tokens),
        "eos_token_id": eos,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 176,
        "max_position_embeddings": 2048,
        "max_window_layers": 2,
        "model_type": "qwen2",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 2048,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": len(tokens) + 8,
    }
    weights = decoder_weights("tiny-qwen2", config, whole_words(tokens), bias=True)
    return {
        "README.md": readme("tiny-qwen2", "the Qwen2 architecture in miniature"),
        ".gitattributes": GITATTRIBUTES,
        "config.json": as_json(config),
        "generation_config.json": as_json(
            {"bos_token_id": len(tokens), "eos_token_id": [eos, len(tokens)], "pad_token_id": len(tokens)}
        ),
        "pytorch_model.bin": duplicate_pickle(weights),
        **sharded(weights, 2),
        **chat_tokenizer(tokens, merges, "Qwen2Tokenizer"),
    }


REMOTE_CODE = '''"""Code that a repository brings: a Llama that is asked as ChatGLM is, by ``model.chat``."""

from transformers import LlamaConfig, LlamaForCausalLM


class TinyChatConfig(LlamaConfig):
    model_type = "tiny_chatglm"


class TinyChatForConditionalGeneration(LlamaForCausalLM):
    config_class = TinyChatConfig

    def chat(self, tokenizer, query, history=None, max_length=8192, num_beams=1, do_sample=True, **kwargs):
        history = list(history or []) + [{"role": "user", "content": query}]
        ids = tokenizer.apply_chat_template(history, add_generation_prompt=True, return_tensors="pt").to(self.device)
        out = self.generate(ids, max_length=max_length, num_beams=num_beams, do_sample=do_sample, **kwargs)
        answer = tokenizer.decode(out[0][ids.shape[1]:], skip_special_tokens=True).strip()
        return answer, history + [{"role": "assistant", "content": answer}]
'''


def tiny_chatglm(tokens: dict[str, int], merges: list[tuple[str, str]]) -> Files:
    """Return the files of a model that brings its own code and is asked as ChatGLM3 is."""
    eos = len(tokens) + 2
    config = {
        "architectures": ["TinyChatForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "modeling_tiny_chatglm.TinyChatConfig",
            "AutoModel": "modeling_tiny_chatglm.TinyChatForConditionalGeneration",
            "AutoModelForCausalLM": "modeling_tiny_chatglm.TinyChatForConditionalGeneration",
        },
        "bos_token_id": len(tokens),
        "eos_token_id": eos,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 176,
        "max_position_embeddings": 2048,
        "model_type": "tiny_chatglm",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": len(tokens),
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": len(tokens) + 8,
    }
    weights = decoder_weights("tiny-chatglm", config, whole_words(tokens), bias=False)
    return {
        "README.md": readme("tiny-chatglm", "a model that brings its own Python code"),
        ".gitattributes": GITATTRIBUTES,
        "config.json": as_json(config),
        "modeling_tiny_chatglm.py": REMOTE_CODE.encode(),
        "model.safetensors": safetensors(weights.tensors),
        **chat_tokenizer(tokens, merges, "PreTrainedTokenizerFast"),
    }


WHISPER_LANGUAGES = ("en", "zh", "de", "es", "fr")


def whisper_specials() -> list[str]:
    """Return Whisper's special tokens in Whisper's order, with five languages."""
    names = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in WHISPER_LANGUAGES)]
    names += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    names += ["<|notimestamps|>"]
    return names + [f"<|{step // 50}.{step % 50 * 2:02d}|>" for step in range(1501)]


def attention_weights(weights: Weights, at: str, size: int) -> None:
    """Add one of Whisper's attention blocks (its key projection has no bias)."""
    for part in ("q", "k", "v", "out"):
        weights.random(f"{at}.{part}_proj.weight", size, size)
        if part != "k":
            weights.random(f"{at}.{part}_proj.bias", size)


def norm_weights(weights: Weights, at: str, size: int) -> None:
    """Add a layer norm that does nothing."""
    weights.fill(f"{at}.weight", 1.0, size)
    weights.fill(f"{at}.bias", 0.0, size)


def whisper_weights(config: dict[str, Any], words: set[int]) -> Weights:
    """Return the tensors of a Whisper of the shape that `config` describes."""
    weights = Weights("tiny-whisper", "F32")
    size, inner = config["d_model"], config["encoder_ffn_dim"]
    weights.random("model.encoder.conv1.weight", size, config["num_mel_bins"], 3)
    weights.random("model.encoder.conv1.bias", size)
    weights.random("model.encoder.conv2.weight", size, size, 3)
    weights.random("model.encoder.conv2.bias", size)
    weights.random("model.encoder.embed_positions.weight", config["max_source_positions"], size)
    weights.random("model.decoder.embed_tokens.weight", config["vocab_size"], size)
    weights.random("model.decoder.embed_positions.weight", config["max_target_positions"], size)
    for side in ("encoder", "decoder"):
        for layer in range(config[f"{side}_layers"]):
            at = f"model.{side}.layers.{layer}"
            attention_weights(weights, f"{at}.self_attn", size)
            norm_weights(weights, f"{at}.self_attn_layer_norm", size)
            if side == "decoder":
                attention_weights(weights, f"{at}.encoder_attn", size)
                norm_weights(weights, f"{at}.encoder_attn_layer_norm", size)
            weights.random(f"{at}.fc1.weight", inner, size)
            weights.random(f"{at}.fc1.bias", inner)
            weights.random(f"{at}.fc2.weight", size, inner)
            weights.random(f"{at}.fc2.bias", size)
            norm_weights(weights, f"{at}.final_layer_norm", size)
        norm_weights(weights, f"model.{side}.layer_norm", size)
    weights.rows("proj_out.weight", words, config["vocab_size"], size)
    return weights


def tiny_whisper(tokens: dict[str, int], merges: list[tuple[str, str]]) -> Files:
    """Return the files of a Whisper of 1.9 million parameters."""
    specials = whisper_specials()
    number = {name: len(tokens) + offset for offset, name in enumerate(specials)}
    end, start = number["<|endoftext|>"], number["<|startoftranscript|>"]
    config = {
        "activation_function": "gelu",
        "architectures": ["WhisperForConditionalGeneration"],
        "attention_dropout": 0.0,
        "begin_suppress_tokens": [tokens[byte_alphabet()[32]], end],
        "bos_token_id": end,
        "d_model": 64,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 128,
        "decoder_layers": 2,
        "decoder_start_token_id": start,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "encoder_layers": 2,
        "eos_token_id": end,
        "is_encoder_decoder": True,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "model_type": "whisper",
        "num_hidden_layers": 2,
        "num_mel_bins": 80,
        "pad_token_id": end,
        "scale_embedding": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": len(tokens) + len(specials),
    }
    generation = {
        "begin_suppress_tokens": config["begin_suppress_tokens"],
        "bos_token_id": end,
        "decoder_start_token_id": start,
        "eos_token_id": end,
        "is_multilingual": True,
        "lang_to_id": {f"<|{code}|>": number[f"<|{code}|>"] for code in WHISPER_LANGUAGES},
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "no_timestamps_token_id": number["<|notimestamps|>"],
        "pad_token_id": end,
        "prev_sot_token_id": number["<|startofprev|>"],
        "return_timestamps": False,
        "suppress_tokens": [],
        "task_to_id": {"transcribe": number["<|transcribe|>"], "translate": number["<|translate|>"]},
    }
    weights = whisper_weights(config, whole_words(tokens))
    template = ["<|startoftranscript|>", "<|notimestamps|>", "<|endoftext|>"]
    return {
        "README.md": readme("tiny-whisper", "Whisper in miniature"),
        ".gitattributes": GITATTRIBUTES,
        "config.json": as_json(config),
        "generation_config.json": as_json(generation),
        "preprocessor_config.json": as_json(
            {
                "chunk_length": 30,
                "feature_extractor_type": "WhisperFeatureExtractor",
                "feature_size": 80,
                "hop_length": 160,
                "n_fft": 400,
                "n_samples": 480000,
                "nb_max_frames": 3000,
                "padding_side": "right",
                "padding_value": 0.0,
                "processor_class": "WhisperProcessor",
                "return_attention_mask": False,
                "sampling_rate": 16000,
            }
        ),
        "model.safetensors": safetensors(weights.tensors),
        "tokenizer.json": tokenizer_json(tokens, merges, specials, template),
        "vocab.json": as_json(tokens, indent=None),
        "merges.txt": ("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)).encode(),
        "added_tokens.json": as_json(number, indent=None),
        "normalizer.json": as_json({"colour": "color", "grey": "gray", "metre": "meter"}),
        "special_tokens_map.json": as_json(
            {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
        ),
        "tokenizer_config.json": as_json(
            {
                "add_prefix_space": False,
                "added_tokens_decoder": added_tokens_decoder(len(tokens), specials),
                "bos_token": "<|endoftext|>",
                "clean_up_tokenization_spaces": True,
                "eos_token": "<|endoftext|>",
                "errors": "replace",
                "model_max_length": 448,
                "pad_token": "<|endoftext|>",
                "processor_class": "WhisperProcessor",
                "return_attention_mask": False,
                "tokenizer_class": "WhisperTokenizer",
                "unk_token": "<|endoftext|>",
            }
        ),
    }


# --- files, index, repositories ---------------------------------------------------------------------------------------


def blob_id(data: bytes) -> str:
    """Return git's name of a file's bytes, which a hub calls ``blob_id``."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def describe(files: Files) -> dict[str, Any]:
    """Return the index entry of one model: its revision (a function of its content) and its files."""
    rows = {
        path: {
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "blob_id": blob_id(data),
            "lfs": path.endswith(LFS_SUFFIXES),
        }
        for path, data in sorted(files.items())
    }
    listing = "".join(f"{row['sha256']}  {path}\n" for path, row in rows.items()).encode()
    return {"revision": hashlib.sha1(listing, usedforsecurity=False).hexdigest(), "files": rows}


def write_models(outdir: pathlib.Path) -> dict[str, Any]:
    """Write all models below `outdir` and return the index."""
    tokens, merges = vocabulary(VOCAB_SIZE)
    makers = {"tiny-qwen2": tiny_qwen2, "tiny-whisper": tiny_whisper, "tiny-chatglm": tiny_chatglm}
    index: dict[str, Any] = {}
    for name, maker in makers.items():
        files = maker(tokens, merges)
        place = outdir / NAMESPACE / name
        if place.exists():
            shutil.rmtree(place)
        for path, data in files.items():
            target = place / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        index[f"{NAMESPACE}/{name}"] = describe(files)
    (outdir / "index.json").write_bytes(as_json(index))
    return index


CODE_REPOSITORIES: dict[str, list[Files]] = {
    f"{NAMESPACE}/tiny-qwen2-code": [
        {
            "README.md": b"# tiny-qwen2-code\n\nThe code beside the model tiny-qwen2.\n",
            "requirements.txt": b"transformers>=4.38.1\ntorch>=2.1.0\n",
            "cli_demo.py": b'"""Ask the model one question."""\n\nprint("see the role\'s smoke test")\n',
        },
        {
            "README.md": b"# tiny-qwen2-code\n\nThe code beside the model tiny-qwen2, second edition.\n",
            "requirements.txt": b"transformers>=4.38.1\ntorch>=2.1.0\n",
            "cli_demo.py": b'"""Ask the model two questions."""\n\nprint("see the role\'s smoke test")\n',
        },
    ],
}


def fast_import_stream(commits: Iterable[Files]) -> bytes:
    """Return a `git fast-import` stream with one commit per entry, authored at fixed times by the fixture itself."""
    who = b"gpufleet fixture <fixture@gpufleet.test>"
    out: list[bytes] = []
    for number, files in enumerate(commits):
        when = b"%d +0000" % (1_700_000_000 + 86_400 * number)
        message = b"Edition %d\n" % (number + 1)
        out.append(b"commit refs/heads/main\n")
        out.append(b"author %s %s\ncommitter %s %s\n" % (who, when, who, when))
        out.append(b"data %d\n%s" % (len(message), message))
        for path, data in sorted(files.items()):
            out.append(b"M 100644 inline %s\ndata %d\n%s\n" % (path.encode(), len(data), data))
    return b"".join(out) + b"done\n"


def write_repositories(gitdir: pathlib.Path) -> dict[str, list[str]]:
    """Write the code repositories as bare git repositories below `gitdir`; return name to commits, oldest first."""
    index: dict[str, list[str]] = {}
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for name, commits in CODE_REPOSITORIES.items():
        place = gitdir / f"{name}.git"
        if place.exists():
            shutil.rmtree(place)
        place.mkdir(parents=True)

        def git(*args: str, feed: bytes | None = None, at: pathlib.Path = place) -> str:
            done = subprocess.run(
                ["git", "-C", str(at), *args], input=feed, capture_output=True, check=True, env=environment
            )
            return done.stdout.decode()

        git("init", "-q", "--bare", "--initial-branch=main", ".")
        git("fast-import", "--quiet", "--done", feed=fast_import_stream(commits))
        # As the large hosts do: a commit may be asked for by its name.
        git("config", "uploadpack.allowAnySHA1InWant", "true")
        git("config", "http.receivepack", "false")
        git("update-server-info")
        index[name] = git("rev-list", "--reverse", "main").split()
    (gitdir / "index.json").write_bytes(as_json(index))
    return index


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, write, say what was written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("outdir", type=pathlib.Path)
    parser.add_argument("--git", type=pathlib.Path, dest="gitdir", help="also write the code repositories here")
    wanted = parser.parse_args(arguments)
    wanted.outdir.mkdir(parents=True, exist_ok=True)
    for name, row in write_models(wanted.outdir).items():
        print(name, row["revision"], sum(file["size"] for file in row["files"].values()), "bytes")
    if wanted.gitdir:
        wanted.gitdir.mkdir(parents=True, exist_ok=True)
        for name, commits in write_repositories(wanted.gitdir).items():
            print(name, *commits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
