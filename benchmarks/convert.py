"""GGUF conversion against the stock path (transformers reads the GGUF, then saves), on one file, in one run.

    python benchmarks/convert.py FILE.gguf

Prediction: the physical floor is reading the file once and writing two bytes a weight; the stock path parses the file
three times in Python and dequantises on one thread, so it should take more than five times as long.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from weightsmith.formats.gguf_convert import convert_gguf


def main() -> None:
    source = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        out = Path(scratch) / "ours"
        out.mkdir()
        convert_gguf(source, out)
        ours = time.perf_counter() - start
        start = time.perf_counter()
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        imported = time.perf_counter() - start
        start = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(str(source.parent), gguf_file=source.name, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name)
        if hasattr(model.config, "quantization_config"):  # the library refuses to save a GGUF model otherwise
            del model.config.quantization_config
        model.hf_quantizer, model.is_quantized = None, False
        model.save_pretrained(Path(scratch) / "stock")
        tokenizer.save_pretrained(Path(scratch) / "stock")
        stock = time.perf_counter() - start
    print(f"ours {ours:.2f} s, stock {stock:.2f} s (imports of {imported:.1f} s left out); ratio {stock / ours:.1f}")


if __name__ == "__main__":
    main()
