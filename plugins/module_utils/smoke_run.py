# Copyright: gpufleet.llm contributors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs in a model's own environment: loads the model, asks it once, measures.

C(llm_smoke) gives this text to the environment's Python and a request as JSON on stdin; the answer is JSON between two
marker lines on stdout. torch and transformers are imported inside the functions, so that a missing package is an answer
too. Works with transformers 4.38 to 5.x; every call that differs between them is marked.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
import traceback
from typing import Any

BEGIN = "-----BEGIN GPUFLEET SMOKE ANSWER-----"
END = "-----END GPUFLEET SMOKE ANSWER-----"

TONE_SECONDS = 2.0
TONE_HERTZ = 440.0
SAMPLING_RATE = 16000


def version_tuple(version: str) -> tuple[int, ...]:
    """(4, 57) of '4.57.6'."""
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def choose_device(wanted: str, cuda_there: bool) -> str:
    """The device of a request: C(auto) means the card when torch can use one. Raises RuntimeError."""
    if wanted == "cuda" and not cuda_there:
        raise RuntimeError(
            "Torch not compiled with CUDA enabled, or no usable card: torch.cuda.is_available() is False"
        )
    if wanted == "auto":
        return "cuda" if cuda_there else "cpu"
    return wanted


def choose_precision(wanted: str, by_device: dict[str, str], device: str, capability: tuple[int, int]) -> str:
    """The precision of a request; C(auto) on a card means bfloat16 from compute capability 8.0, float16 before."""
    precision = by_device.get(device, "auto") if wanted == "auto" else wanted
    if precision != "auto":
        return precision
    if device == "cpu":
        return "float32"
    return "bfloat16" if capability >= (8, 0) else "float16"


def tone(seconds: float = TONE_SECONDS) -> list[float]:
    """A sine of 440 Hz at a third of full scale, 16,000 samples a second."""
    step = 2 * math.pi * TONE_HERTZ / SAMPLING_RATE
    return [0.33 * math.sin(step * number) for number in range(int(seconds * SAMPLING_RATE))]


def dtype_argument(transformers: Any, dtype: Any) -> dict[str, Any]:
    """The keyword that from_pretrained takes: C(dtype) since transformers 4.56, C(torch_dtype) before."""
    return {"dtype" if version_tuple(transformers.__version__) >= (4, 56) else "torch_dtype": dtype}


class Run:
    """One model, one question. The attributes are what the answer reports."""

    def __init__(self, request: dict[str, Any]) -> None:
        import torch  # type: ignore[import-not-found]
        import transformers  # type: ignore[import-not-found]

        self.request = request
        self.torch = torch
        self.transformers = transformers
        self.trust: bool = bool(request["trust_remote_code"])
        self.device = choose_device(request["device"], torch.cuda.is_available())
        capability = torch.cuda.get_device_capability() if self.device == "cuda" else (0, 0)
        self.precision = choose_precision(request["precision"], request["dtype"], self.device, capability)
        loading = self.precision if self.precision not in ("int8", "int4") else "float16"
        self.dtype = getattr(torch, loading)
        self.tokens = 0
        self.load_seconds = 0.0
        self.generate_seconds = 0.0
        torch.manual_seed(0)
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def common(self) -> dict[str, Any]:
        """What every from_pretrained of this run takes."""
        return {"trust_remote_code": self.trust, "local_files_only": True}

    def ready(self, model: Any, started: float) -> Any:
        """The model on its device, in evaluation mode; ends the loading time."""
        model = model.to(self.device).eval()
        self.settle()
        self.load_seconds = time.monotonic() - started
        return model

    def settle(self) -> None:
        """Wait for the card, so that a measured time is the work's and not the launch's."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def text_generation(self) -> str:
        """A chat model of transformers, asked through its own chat template, greedily."""
        started = time.monotonic()
        path, auto = self.request["model_path"], self.transformers
        tokenizer = auto.AutoTokenizer.from_pretrained(path, **self.common())
        model = auto.AutoModelForCausalLM.from_pretrained(
            path, use_safetensors=not self.request["allow_pickle"], **self.common(), **dtype_argument(auto, self.dtype)
        )
        model = self.ready(model, started)
        if getattr(tokenizer, "chat_template", None):
            chat = [{"role": "user", "content": self.request["prompt"]}]
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        else:
            inputs = tokenizer(self.request["prompt"], return_tensors="pt")
        inputs = inputs.to(self.device)
        length = inputs["input_ids"].shape[1]
        started = time.monotonic()
        with self.torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=self.request["max_new_tokens"], do_sample=False)
        self.settle()
        self.generate_seconds = time.monotonic() - started
        self.tokens = int(out.shape[1] - length)
        return str(tokenizer.decode(out[0][length:], skip_special_tokens=True)).strip()

    def chatglm(self) -> str:
        """A model that brings its own code and is asked by its own C(chat) method, as ChatGLM3 is."""
        started = time.monotonic()
        path, auto = self.request["model_path"], self.transformers
        tokenizer = auto.AutoTokenizer.from_pretrained(path, **self.common())
        model = auto.AutoModel.from_pretrained(path, **self.common(), **dtype_argument(auto, self.dtype))
        if self.precision in ("int8", "int4"):
            model = model.quantize(8 if self.precision == "int8" else 4)
        model = self.ready(model, started)
        started = time.monotonic()
        with self.torch.inference_mode():
            answer, _history = model.chat(
                tokenizer,
                self.request["prompt"],
                history=[],
                do_sample=False,
                max_new_tokens=self.request["max_new_tokens"],
            )
        self.settle()
        self.generate_seconds = time.monotonic() - started
        # chat() gives text only, and ChatGLM3 gives a mapping for a tool call.
        text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
        self.tokens = len(tokenizer.encode(text, add_special_tokens=False))
        return text.strip()

    def speech_recognition(self) -> str:
        """A speech model, given two seconds of a tone; what it hears in that is its own affair, it must only answer."""
        import numpy  # type: ignore[import-not-found]

        started = time.monotonic()
        path, auto = self.request["model_path"], self.transformers
        processor = auto.AutoProcessor.from_pretrained(path, **self.common())
        model = auto.AutoModelForSpeechSeq2Seq.from_pretrained(
            path, use_safetensors=not self.request["allow_pickle"], **self.common(), **dtype_argument(auto, self.dtype)
        )
        model = self.ready(model, started)
        listener = auto.pipeline(
            "automatic-speech-recognition",
            model=model,
            tokenizer=processor.tokenizer,
            feature_extractor=processor.feature_extractor,
            device=model.device,
            **dtype_argument(auto, self.dtype),
        )
        options: dict[str, Any] = {"max_new_tokens": self.request["max_new_tokens"], "do_sample": False}
        if self.request["language"]:
            options.update(language=self.request["language"], task="transcribe")
        sound = {"raw": numpy.asarray(tone(), dtype=numpy.float32), "sampling_rate": SAMPLING_RATE}
        started = time.monotonic()
        heard = listener(sound, generate_kwargs=options)
        self.settle()
        self.generate_seconds = time.monotonic() - started
        if not isinstance(heard, dict) or not isinstance(heard.get("text"), str):
            raise RuntimeError(f"the pipeline gave no text but {type(heard).__name__}")
        text = heard["text"].strip()
        self.tokens = len(processor.tokenizer.encode(text, add_special_tokens=False))
        return str(text)

    def peak_memory_bytes(self) -> int:
        """The card's memory that torch had at most, or the process's resident memory on a CPU (Linux gives KiB)."""
        if self.device == "cuda":
            return int(self.torch.cuda.max_memory_allocated())
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def versions(self) -> dict[str, str]:
        """What answered."""
        found = {
            "python": platform.python_version(),
            "torch": str(self.torch.__version__),
            "transformers": str(self.transformers.__version__),
        }
        if self.torch.version.cuda:
            found["cuda"] = str(self.torch.version.cuda)
        return found


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Run the request; the answer's keys are those of C(llm_smoke)'s return values."""
    run = Run(request)
    kinds = {
        "text_generation": run.text_generation,
        "chatglm": run.chatglm,
        "speech_recognition": run.speech_recognition,
    }
    text = kinds[request["kind"]]()
    if not text and request["kind"] != "speech_recognition":
        raise RuntimeError("the model gave an empty answer")
    return {
        "answer": text,
        "load_seconds": round(run.load_seconds, 3),
        "generate_seconds": round(run.generate_seconds, 3),
        "tokens": run.tokens,
        "tokens_per_second": round(run.tokens / run.generate_seconds, 2) if run.generate_seconds > 0 else 0.0,
        "peak_memory_bytes": run.peak_memory_bytes(),
        "device": run.device,
        "device_name": run.torch.cuda.get_device_name() if run.device == "cuda" else platform.machine(),
        "precision": run.precision,
        "versions": run.versions(),
    }


def main() -> None:
    """Answer the request on stdin. The exit status is 0 also for a failure that could be told."""
    request = json.loads(sys.stdin.readline())
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        answer = {"ok": True, **ask(request)}
    except BaseException as error:
        answer = {
            "ok": False,
            "error_type": type(error).__name__,
            "error_text": "".join(traceback.format_exception(type(error), error, error.__traceback__))[-20000:],
        }
    sys.stdout.write(f"\n{BEGIN}\n{json.dumps(answer)}\n{END}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
